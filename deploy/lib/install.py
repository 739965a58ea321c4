"""`deploy/install` and `deploy/uninstall`: the runtime for the host's own containerd."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.lib import apt
from deploy.lib.command import DeployError, run
from deploy.lib.guest import BUILD_TIMEOUT
from deploy.lib.progress import Progress
from deploy.lib.quickstart import host_packages, require_root
from deploy.lib.runtime import SHIM, write_launcher
from deploy.lib.venv import PYTHON, compile_tree, dependencies, prepare_venv, site_packages
from deploy.lib.work import REPOSITORY, replacing

CODE = ("shim", "vmm", "guest_agent", "protos")
"""The packages that are installed; the guest image is built from them too."""

_KATAPY = """\
#!{python} -I
import sys
sys.path.insert(0, {source!r})
from shim.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Places:
    """Where an installation's parts are."""

    prefix: Path = Path("/opt/katapy")
    links: Path = Path("/usr/local/bin")
    config: Path = Path("/etc/katapy")
    images: Path = Path("/var/cache/katapy")
    state: Path = Path("/run/katapy")

    @property
    def programs(self) -> dict[Path, Path]:
        """Links on the PATH, and the programs they lead to."""
        return {self.links / name: self.prefix / "bin" / name for name in (SHIM, "katapy")}


def install(arguments: Sequence[str]) -> int:
    """Put the runtime under the prefix and its programs on the PATH. Safe to repeat."""
    parser = _parser("install", "Put katapy on this host, for the host's own containerd.")
    parser.add_argument(
        "--no-image", action="store_true", help="leave building the guest image to later"
    )
    options = parser.parse_args(arguments)
    with _reporting("install"):
        places = Places(prefix=options.prefix.absolute())
        _install(places, Progress(), image=not options.no_image)
        print(
            f"katapy is in {places.prefix}; try:\n"
            "  katapy check\n"
            "  ctr run --rm --runtime io.containerd.katapy.v2 IMAGE ID COMMAND"
        )
        return 0
    return 1


def uninstall(arguments: Sequence[str]) -> int:
    """Take away all that ``install`` made; the configuration stays unless purged."""
    parser = _parser("uninstall", "Take katapy away from this host.")
    parser.add_argument("--purge", action="store_true", help="remove the configuration too")
    options = parser.parse_args(arguments)
    with _reporting("uninstall"):
        places = Places(prefix=options.prefix.absolute())
        _uninstall(places, purge=options.purge)
        return 0
    return 1


def _install(places: Places, progress: Progress, *, image: bool) -> None:
    require_root()
    for link, program in places.programs.items():
        if os.path.lexists(link) and not _leads_to(link, program):
            raise DeployError(f"{link} exists and is not ours")
    with progress.stage("Debian packages"):
        installed = apt.install_missing(sorted(set(host_packages())))
    if installed:
        progress.note("installed " + " ".join(installed))
    venv = places.prefix / "venv"
    with progress.stage("Python packages in a virtual environment"):
        python = prepare_venv(venv, dependencies(tests=False))
    source = places.prefix / "lib"
    with progress.stage("katapy"):
        with replacing(source) as draft:
            for name in CODE:
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(REPOSITORY / name, draft / name, ignore=ignored)
        compile_tree(PYTHON, source)
        binaries = places.prefix / "bin"
        binaries.mkdir(exist_ok=True)
        write_launcher(binaries / SHIM, source, site_packages(venv), places.prefix / "bytecode")
        katapy = binaries / "katapy"
        katapy.write_text(_KATAPY.format(python=python, source=str(source)))
        katapy.chmod(0o755)
        _write_config(places)
        places.links.mkdir(parents=True, exist_ok=True)
        for link, program in places.programs.items():
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    if image:
        with progress.stage("guest kernel and image"):
            said = run([katapy, "image", "build"], timeout=BUILD_TIMEOUT)
        for line in said.strip().splitlines():
            progress.note(line)


def _write_config(places: Places) -> None:
    target = places.config / "config.toml"
    if not target.exists():
        (places.config / "config.d").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / "deploy/config.toml", target)


def _uninstall(places: Places, *, purge: bool) -> None:
    require_root()
    running = list(_running_shims(places))
    if running:
        raise DeployError(f"containers still run under katapy (shims {running}): end them first")
    for link, program in places.programs.items():
        if _leads_to(link, program):
            link.unlink()
    removed = [places.prefix, places.images, *([places.config] if purge else [])]
    for folder in removed:
        shutil.rmtree(folder, ignore_errors=not folder.exists())
    # What a crashed sandbox left is `katapy cleanup`'s to undo, so only empty state goes.
    for folder in (places.state / "s", places.state):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _leads_to(link: Path, program: Path) -> bool:
    return link.is_symlink() and os.readlink(link) == str(program)


def _running_shims(places: Places) -> Iterator[int]:
    wanted = {os.fsencode(path) for pair in places.programs.items() for path in pair}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word in wanted and SHIM.encode() in word for word in words):
                    yield int(entry.name)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"deploy/{name}", description=description)
    parser.add_argument(
        "--prefix", type=Path, default=Places.prefix, help="where it is put (%(default)s)"
    )
    return parser


@contextlib.contextmanager
def _reporting(name: str) -> Iterator[None]:
    try:
        yield
    except (DeployError, KeyboardInterrupt) as error:
        print(f"{name}: {error or 'interrupted'}", file=sys.stderr)
