"""The guest's root file system: Python, crun, busybox and our agent in a read-only image.

Only what is asked for gets in: two programs, Python's library without its tests, tools and
rarely used parts, the shared libraries all these name as needed, and our own modules.
Python's library is kept as bytecode alone; ours has its source beside, for tracebacks.
The same inputs give the same bytes: times, owners, order and the file system's id are fixed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from vmm.image.apt import open_deb
from vmm.image.command import run
from vmm.image.elf import is_elf, needed
from vmm.image.errors import ImageError

AGENT_HOME = "usr/lib/katapy"
_FIXED_UUID = "6b617461-7079-4000-8000-000000000000"
_TOOL_TIMEOUT = 300.0
_PMEM_GRANULE = 2 << 20

# Debian has merged these into /usr; packages of some releases still name the old paths.
_MERGED = ("bin", "sbin", "lib", "lib64")
_MOUNT_POINTS = {
    "dev": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "root": 0o700,
    "home": 0o755,
    "opt": 0o755,
    "srv": 0o755,
    "var/lib": 0o755,
    "var/tmp": 0o1777,
    "usr/sbin": 0o755,
}
_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "guest\n",
    "etc/resolv.conf": "",
}
_PROGRAMS = re.compile(
    r"usr/bin/(python3\.\d+|crun|busybox)|usr/sbin/(xtables-nft-multi|ip6?tables-nft.*)"
)
# What iptables matches and does, opened by name when a rule asks for it.
_XTABLES = re.compile(r"usr/lib/[\w-]+-linux-gnu/xtables/[^/]+\.so")
_LIBRARIES = re.compile(r"usr/lib(64|/[\w-]+-linux-gnu)/[^/]+\.so[^/]*|usr/lib/ld[^/]*\.so\.\d")
_PYTHON = re.compile(r"usr/lib/python3\.\d+/(?P<inside>.+)")
_LOADERS = ("ld-linux", "ld64")
# Python opens it when a thread ends, without naming it as needed.
_OPENED_AT_RUN_TIME = ("libgcc_s.so.1",)
_PYTHON_LEFT_OUT = re.compile(
    r"""(
      (.*/)?(tests?|__pycache__|idle_test)/.*
    | (config-|dist-packages|ensurepip|idlelib|lib2to3|distutils|turtledemo|tkinter|pydoc_data
       |curses|dbm|sqlite3|venv|wsgiref|xmlrpc|msilib|_pyrepl|__phello__).*
    | (pydoc|turtle|antigravity|this|doctest|pdb|cgi|cgitb|sitecustomize|_aix_support
       |_osx_support|_ios_support|_android_support|nturl2path|ntpath_)\.py
    | _sysconfigdata.*
    | lib-dynload/(_test|_xx|xx|_ssl|_hashlib|_curses|_dbm|_gdbm|_tkinter|_sqlite3|_codecs_|nis
       |ossaudiodev|audioop|readline|_crypt|_lsprof).*
    | .*\.(txt|html|css|gif|png|pem)
    )""",
    re.VERBOSE,
)


class RootTree:
    """A root file system in the making.

    Args:
        directory: an empty directory it is put together in.
    """

    def __init__(self, directory: Path) -> None:
        self._root = directory
        (directory / "usr").mkdir()
        for name in _MERGED:
            (directory / "usr" / name).mkdir()
            (directory / name).symlink_to(f"usr/{name}")
        for path, mode in _MOUNT_POINTS.items():
            (directory / path).mkdir(parents=True, exist_ok=True)
            (directory / path).chmod(mode)
        (directory / "var/run").symlink_to("/run")
        for path, text in _ETC.items():
            self.add(path, text.encode())

    def add(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file; its directories are made."""
        target = self._root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)

    def add_package(self, deb: Path) -> None:
        """Add the files of a package that the guest has a use for.

        Raises:
            ImageError: the package can't be read.
        """
        with open_deb(deb) as archive:
            for member in archive:
                path = _merged_path(member.name)
                if not _wanted(path):
                    continue
                target = self._root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if member.issym():
                    target.unlink(missing_ok=True)
                    target.symlink_to(member.linkname)
                elif member.isfile():
                    contents = archive.extractfile(member)
                    assert contents is not None
                    target.unlink(missing_ok=True)
                    target.write_bytes(contents.read())
                    target.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)

    def add_agent(self, sources: Mapping[str, bytes], init: bytes) -> None:
        """Add our own modules, by path below the agent's home, and the first program."""
        for path, data in sources.items():
            self.add(f"{AGENT_HOME}/{path}", data)
        self.add("usr/sbin/init", init, 0o755)

    def complete(self, tools: RootTree) -> None:
        """Drop libraries nothing needs, link busybox's applets, compile the Python modules.

        Args:
            tools: a tree with the same Python and busybox that the host can run; this one,
                unless it is of another architecture.

        Raises:
            ImageError: a library is needed that no package has, or the guest's Python fails.
        """
        self._sweep_libraries()
        self._link_programs(tools)
        self._compile(tools)

    def pack(self, target: Path, kind: Literal["erofs", "squashfs"] = "erofs") -> None:
        """Write the file system image, as long as persistent memory has to be.

        Raises:
            ImageError: mkfs.erofs or mksquashfs isn't there or fails.
        """
        for directory, _, _ in os.walk(self._root):
            relative = os.path.relpath(directory, self._root)
            Path(directory).chmod(_MOUNT_POINTS.get(relative, 0o755))
        if kind == "erofs":
            # Clusters of 16 KiB are smaller and unpack faster than the default of one page.
            options = ["--quiet", "-zlz4hc", "-C16384", "-T0", "--all-root", "-x-1"]
            options.append(f"-U{_FIXED_UUID}")
            run(["mkfs.erofs", *options, target, self._root], timeout=_TOOL_TIMEOUT)
        else:
            options = ["-quiet", "-no-progress", "-noappend", "-all-root", "-no-xattrs"]
            options += ["-comp", "lz4", "-Xhc", "-b", "64K", "-mkfs-time", "0", "-all-time", "0"]
            run(["mksquashfs", self._root, target, *options], timeout=_TOOL_TIMEOUT)
        size = target.stat().st_size
        os.truncate(target, -(-size // _PMEM_GRANULE) * _PMEM_GRANULE)

    @property
    def busybox(self) -> bytes:
        """The static busybox that is in the tree."""
        return (self._root / "usr/bin/busybox").read_bytes()

    def _sweep_libraries(self) -> None:
        libraries = {
            path.name: path
            for path in sorted((self._root / "usr").rglob("*.so*"))
            if _LIBRARIES.fullmatch(str(path.relative_to(self._root)))
        }
        usr = self._root / "usr"
        found = [*(usr / "bin").iterdir(), *(usr / "sbin").iterdir()]
        found += (usr / "lib").glob("python3.*/lib-dynload/*.so")
        found += (usr / "lib").glob("*/xtables/*.so")
        roots = [path for path in found if not path.is_symlink()]
        wanted = {name for name in _OPENED_AT_RUN_TIME if name in libraries}
        pending = [*roots, *(libraries[name] for name in wanted)]
        while pending:
            path = pending.pop()
            for name in self._needs(path, libraries):
                if name not in wanted:
                    wanted.add(name)
                    pending.append(libraries[name])
        for name, path in libraries.items():
            if name not in wanted:
                path.unlink()

    def _needs(self, path: Path, libraries: Mapping[str, Path]) -> Iterable[str]:
        if path.is_symlink():
            names = [os.path.basename(os.readlink(path))]
        else:
            data = path.read_bytes()
            names = needed(data) if is_elf(data) else []
            if path.parent.name == "bin" and names:
                names.append(next(n for n in libraries if n.startswith(_LOADERS)))
        missing = [name for name in names if name not in libraries]
        if missing:
            raise ImageError(f"{path.name} needs {', '.join(missing)}, which no package brought")
        return names

    def _link_programs(self, tools: RootTree) -> None:
        binary = tools._root / "usr/bin/busybox"
        for applet in run([binary, "--list-full"], timeout=_TOOL_TIMEOUT).split():
            link = self._root / _merged_path(applet)
            if not link.exists() and not link.is_symlink() and link.parent.is_dir():
                link.symlink_to("/usr/bin/busybox")
        (python,) = (self._root / "usr/bin").glob("python3.*")
        (self._root / "usr/bin/python3").symlink_to(python.name)

    def _compile(self, tools: RootTree) -> None:
        """Compile with the guest's own Python, which is not always the one we run under."""
        (library,) = (self._root / "usr/lib").glob("python3.*")
        (python,) = (tools._root / "usr/bin").glob("python3.*")
        (triplet,) = (tools._root / "usr/lib").glob("*-linux-gnu")
        loader = next(path for name in _LOADERS for path in triplet.glob(f"{name}*.so.*"))
        script = Path(__file__).with_name("data") / "compile.py"
        command: list[str | Path] = [loader, "--library-path", triplet, python, "-S", "-B"]
        run(
            [*command, script, self._root, library, self._root / AGENT_HOME],
            timeout=_TOOL_TIMEOUT,
            env={
                "PYTHONHOME": str(tools._root / "usr"),
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": "",
                "PYTHONWARNINGS": "ignore",
            },
        )


def _merged_path(name: str) -> str:
    path = PurePosixPath(name.removeprefix("./"))
    return str(PurePosixPath("usr") / path if path.parts and path.parts[0] in _MERGED else path)


def _wanted(path: str) -> bool:
    if python := _PYTHON.fullmatch(path):
        return not _PYTHON_LEFT_OUT.fullmatch(python["inside"])
    return any(kind.fullmatch(path) for kind in (_PROGRAMS, _LIBRARIES, _XTABLES))
