"""Which containerd the end-to-end tests run against: a Debian release's, or a directory's.

`--containerd` names series that Debian carries, and directories of programs (absolute
paths) for versions it does not: `containerd` and `ctr`, as in `bin/` of a release of
containerd's or of a build of one's own. Such a one goes by its full version.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.lib.apt import Unpacked
from deploy.lib.command import DeployError, run
from deploy.lib.containerd import RELEASES, fetch_containerd
from deploy.lib.tools import fetch_erofs_utils
from tests.support import versions

_FULL_ORDER = ("1.7", "2.1", "1.6")
_PROGRAMS = ("containerd", "ctr", "containerd-shim-runc-v2", "runc")


def chosen(option: str) -> dict[str, Path | None]:
    """The versions that `--containerd` asks for, and the directories of those not Debian's.

    Raises: ValueError when an entry is neither a series of Debian's nor an absolute path;
    DeployError when a directory has no containerd.
    """
    found: dict[str, Path | None] = {}
    for name in filter(None, option.split(",")):
        if name.startswith("/"):
            try:
                found[version_of(Path(name))] = Path(name)
            except (DeployError, OSError, ValueError) as error:
                raise pytest.UsageError(f"--containerd {name}: {error}") from error
        elif name in RELEASES:
            found[name] = None
        else:
            known = ", ".join(RELEASES)
            raise pytest.UsageError(f"--containerd {name}: want {known} or a directory's path")
    return found


def first(names: Sequence[str]) -> list[str]:
    """The one that the full list of tests runs on: of Debian's by rank, else the first."""
    return [name for name in (*_FULL_ORDER, *names) if name in names][:1]


@functools.cache
def version_of(folder: Path) -> str:
    """A directory's version of containerd, such as ``2.3.4``. Raises: DeployError, ValueError."""
    answer = run([folder / "containerd", "--version"], timeout=30)
    match = re.search(r"\sv?(\d+\.\d+\.\S+)", answer)
    if match is None:
        raise ValueError(f"{folder}/containerd --version names no version: {answer}")
    return match[1]


def number(series: str) -> tuple[int, int]:
    """A series as numbers that can be compared: ``(2, 3)`` for ``2.3.4``."""
    major, minor = series.split(".")[:2]
    return int(major), int(minor)


def asks_for_features(version: str) -> bool:
    """Whether CRI of a version asks the shim what it offers; others ask runc, for all."""
    release = tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
    return (2, 2, 7) <= release < (2, 3) or release >= (2, 3, 4)


def programs(series: str, folder: Path | None, scratch: Path) -> Unpacked:
    """The programs of one version; Debian's are unpacked, those of a directory linked to.

    Params: ``scratch`` is where the links may be made. What the directory lacks of runc and
    its shim is the newest Debian's. Raises: DeployError; skips if a package can't be had.
    """
    if folder is None:
        release = RELEASES[series]
        return versions.obtain(f"containerd {series}", release, lambda: fetch_containerd(release))
    root = scratch / f"programs-{series}"
    if not root.exists():
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/sbin").symlink_to("bin")
        for name in _PROGRAMS:
            (root / "usr/bin" / name).symlink_to(_find(name, folder))
    packages = Unpacked(root, str(folder), {"containerd": series})
    return versions.obtain(f"containerd {series}", str(folder), lambda: packages)


def mkfs_erofs(folder: Path) -> Path:
    """A directory with nothing but a mkfs.erofs that can make layers, for a daemon's PATH.

    Params: ``folder`` is where it is made. Raises: DeployError; skips if it can't be had.
    """
    packages = versions.obtain("erofs-utils", "trixie", fetch_erofs_utils)
    place = folder / "erofs-utils"
    place.mkdir()
    (place / "mkfs.erofs").symlink_to(packages.program("/usr/bin/mkfs.erofs"))
    return place


def _find(name: str, folder: Path) -> Path:
    if (folder / name).exists():
        return folder / name
    newest = fetch_containerd("sid")
    places = [newest.program("/usr/bin"), newest.program("/usr/sbin")]
    found = shutil.which(name, path=":".join(map(str, places)))
    assert found is not None, f"{name} is neither in {folder} nor in Debian's containerd and runc"
    return Path(found)
