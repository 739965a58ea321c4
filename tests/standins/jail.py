"""The stand-in for Firecracker's ``jailer``.

It lays the jail out as the real one does. As a stand-in is no static program, the jail's
own mount namespace gets besides, read-only, the host's ``/usr`` and our sources; on the
host their mount points show as empty directories.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.standins import settings
from tests.standins.fc.main import DEFAULT_VERSION, VERSION_VARIABLE

_OPTIONS = {
    "id": True,
    "exec-file": True,
    "uid": True,
    "gid": True,
    "chroot-base-dir": True,
    "netns": True,
    "daemonize": False,
    "new-pid-ns": False,
    "cgroup": True,
    "resource-limit": True,
    "cgroup-version": True,
    "parent-cgroup": True,
    "version": False,
    "help": False,
}
_REQUIRED = ("id", "exec-file", "uid", "gid")
_DEFAULT_BASE = "/srv/jailer"
_ID_MAX = 64
_NO_FILE = 2048
_NAME_FREE = (1, 13)
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 32, 4096, 16384, 1 << 19
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = 155
_DEVICES = (("/dev/net/tun", 10, 200), ("/dev/kvm", 10, 232), ("/dev/urandom", 1, 9))
_FOLDERS = ("/", "/dev", "/dev/net", "/run")
_libc = ctypes.CDLL(None, use_errno=True)


class JailError(Exception):
    """The jail can't be made."""


def main(argv: Sequence[str]) -> int:
    """Make the jail and run the program in it; returns only on failure."""
    started = time.time_ns() // 1000
    version = settings.chosen_version(VERSION_VARIABLE, DEFAULT_VERSION)
    try:
        found = settings.parse(argv, _OPTIONS)
        if "version" in found or "help" in found:
            print(f"Jailer v{version}\n")
            return 0
        for name in _REQUIRED:
            if name not in found:
                raise settings.BadArguments(f"Argument '{name}' required, but not found.")
        Jail(found, version, started).run()
    except settings.BadArguments as error:
        print(f"Arguments parsing error: {error}", file=sys.stderr)
    except (JailError, OSError) as error:
        print(f"Jailer error: {error}", file=sys.stderr)
    return 1


class Jail:
    """One jail.

    Args:
        options: of the command line.
        version: of the jailer.
        started: microseconds since 1970.

    Raises:
        JailError: an option's value can't be.
    """

    def __init__(self, options: dict[str, list[str]], version: str, started: int) -> None:
        self._options = options
        self._started = started
        self._id = options["id"][0]
        if not 1 <= len(self._id) <= _ID_MAX or not all(c.isalnum() or c == "-" for c in self._id):
            raise JailError(f"Invalid instance ID: {self._id}")
        self._exec = Path(options["exec-file"][0]).resolve()
        if not self._exec.is_file():
            raise JailError(f"{self._exec} is not a file")
        numbers = tuple(int(part) for part in version.split(".")[:2])
        if numbers < _NAME_FREE and "firecracker" not in self._exec.name:
            raise JailError(
                "Invalid filename. The filename of `--exec-file` must contain firecracker"
            )
        base = Path(options.get("chroot-base-dir", [_DEFAULT_BASE])[0])
        try:
            base = base.resolve(strict=True)
        except OSError as error:
            raise JailError(f"Failed to canonicalize path {base}: {error.strerror}") from error
        self._root = base / self._exec.name / self._id / "root"
        try:
            self._uid, self._gid = int(options["uid"][0]), int(options["gid"][0])
        except ValueError as error:
            raise JailError(f"Invalid uid or gid: {error}") from error

    def run(self) -> None:
        """Do everything and exec.

        Raises:
            JailError, OSError: a step failed; what was made stays.
        """
        # The program needs these two; the real jailer leaves nothing of its environment.
        kept = ("KATAPY_STANDIN_VSOCK", VERSION_VARIABLE, "KATAPY_STANDIN_QEMU")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment[settings.ROOT_VARIABLE] = str(settings.ROOT)
        os.closerange(3, 1 << 16)
        self._root.mkdir(parents=True, exist_ok=True)
        program = self._copy_program()
        if "netns" in self._options:
            with open(self._options["netns"][0]) as file:
                _check(_libc.setns(file.fileno(), _CLONE_NEWNET), "setns")
        self._limit()
        self._join_cgroups()
        null = os.open("/dev/null", os.O_RDWR) if "daemonize" in self._options else -1
        self._enter(environment)
        if null >= 0:
            if os.fork():
                os._exit(0)
            os.setsid()
            if os.fork():
                os._exit(0)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
        if "new-pid-ns" in self._options:
            self._exec_in_new_pid_namespace(program, environment)
        self._write_pid(program, os.getpid())
        self._exec_program(program, environment)

    def _copy_program(self) -> str:
        target = self._root / self._exec.name
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o755)
        with open(fd, "wb") as copy:
            if os.fstat(fd).st_nlink > 1:
                raise JailError(f"{target} has several links")
            os.fchown(fd, self._uid, self._gid)
            copy.write(self._exec.read_bytes())
        return f"/{self._exec.name}"

    def _limit(self) -> None:
        limits = {"no-file": _NO_FILE}
        for text in self._options.get("resource-limit", ()):
            name, _, value = text.partition("=")
            if name not in ("no-file", "fsize") or not value.isdecimal():
                raise JailError(f"Invalid format for resource limits: {text}")
            limits[name] = int(value)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits["no-file"],) * 2)
        if "fsize" in limits:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits["fsize"],) * 2)

    def _join_cgroups(self) -> None:
        settings_given = self._options.get("cgroup", [])
        version = self._options.get("cgroup-version", ["1"])[0]
        parent = self._options.get("parent-cgroup", [self._exec.name])[0]
        if version not in ("1", "2"):
            raise JailError(f"Invalid cgroup version: {version}")
        if not settings_given:
            directory = _hierarchy("cgroup2", "") / parent if version == "2" else None
            if directory is not None and directory.exists():
                (directory / "cgroup.procs").write_text(str(os.getpid()))
            return
        joined = set()
        for text in settings_given:
            file, _, value = text.partition("=")
            if not value or "/" in file:
                raise JailError(f"Invalid format for cgroups: {text}")
            kind = "cgroup2" if version == "2" else "cgroup"
            directory = _hierarchy(kind, file.partition(".")[0]) / parent / self._id
            directory.mkdir(parents=True, exist_ok=True)
            (directory / file).write_text(value)
            joined.add(directory)
        for directory in joined:
            (directory / "cgroup.procs").write_text(str(os.getpid()))

    def _enter(self, environment: dict[str, str]) -> None:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        _mount(None, "/", _MS_SLAVE | _MS_REC)
        root = str(self._root)
        _mount(root, root, _MS_BIND | _MS_REC)
        self._bring_in(environment)
        os.chdir(root)
        os.mkdir("old_root", 0o600)
        _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"old_root"), "pivot_root")
        os.chdir("/")
        _check(_libc.umount2(b"old_root", _MNT_DETACH), "umount")
        os.rmdir("old_root")
        for folder in _FOLDERS:
            Path(folder).mkdir(exist_ok=True)
            os.chmod(folder, 0o700)
            os.chown(folder, self._uid, self._gid)
        for path, major, minor in _DEVICES:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
            os.chown(path, self._uid, self._gid)

    def _bring_in(self, environment: dict[str, str]) -> None:
        """Mount what a program that is a script needs."""
        places = [Path("/usr"), Path("/proc"), settings.ROOT / "tests", settings.ROOT / "vmm"]
        daemon = environment.get("KATAPY_STANDIN_VSOCK")
        if daemon:
            # A daemon unpacked from a package has its libraries beside it.
            unpacked = [p for p in Path(daemon).resolve().parents if (p / "usr").is_dir()]
            places += [p for p in unpacked if p != Path("/")][:1]
        for place in places:
            target = self._root / place.relative_to("/")
            target.mkdir(parents=True, exist_ok=True)
            _mount(str(place), str(target), _MS_BIND | _MS_REC)
            if place != Path("/proc"):
                _mount(None, str(target), _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
        for name in ("bin", "lib", "lib64", "sbin"):
            link = self._root / name
            if Path("/", name).is_symlink() and not link.is_symlink():
                link.symlink_to(os.readlink(f"/{name}"))

    def _exec_in_new_pid_namespace(self, program: str, environment: dict[str, str]) -> None:
        leads = os.getsid(0) == os.getpid() and "daemonize" not in self._options
        _check(_libc.unshare(_CLONE_NEWPID), "unshare")
        child = os.fork()
        if child:
            self._write_pid(program, child)
            os._exit(0)
        if leads:
            os.setsid()
        self._exec_program(program, environment)

    def _write_pid(self, program: str, pid: int) -> None:
        fd = os.open(f"{program}.pid", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, str(pid).encode())
        os.close(fd)

    def _exec_program(self, program: str, environment: dict[str, str]) -> None:
        os.setgroups([])
        os.setgid(self._gid)
        os.setuid(self._uid)
        argv = [program, "--id", self._id, "--start-time-us", str(self._started)]
        argv += ["--start-time-cpu-us", str(time.process_time_ns() // 1000)]
        argv += ["--parent-cpu-time-us", "0", *self._options.get("--", [])]
        os.execve(program, argv, environment)


def _hierarchy(kind: str, controller: str) -> Path:
    with open("/proc/mounts") as mounts:
        for line in mounts:
            _, where, what, options = line.split()[:4]
            if what == kind and (kind == "cgroup2" or controller in options.split(",")):
                return Path(where)
    raise JailError(f"No {kind} hierarchy for {controller}")


def _mount(source: str | None, target: str, flags: int) -> None:
    encoded = None if source is None else os.fsencode(source)
    _check(_libc.mount(encoded, os.fsencode(target), None, flags, None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise JailError(f"{what}: {os.strerror(ctypes.get_errno())}")
