"""What the kernel says of the mounts of this process, parsed.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One mount.

    Attributes:
        root: what of its file system is shown, as a path in it.
        target: where it is mounted.
        fstype: file system type.
        source: device or name.
        options: of the file system as a whole; a flag word maps to "".
    """

    root: str
    target: str
    fstype: str
    source: str
    options: Mapping[str, str]


def parse_mountinfo(text: str) -> list[MountPoint]:
    """Parse the whole of a mountinfo file, in its order; malformed lines are left out."""
    found = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        options = (option.partition("=") for option in rest[2].split(","))
        found.append(
            MountPoint(
                root=_plain(fields[3]),
                target=_plain(fields[4]),
                fstype=rest[0],
                source=_plain(rest[1]),
                options={key: value for key, _, value in options},
            )
        )
    return found


def mount_of(path: str, mounts: Iterable[MountPoint]) -> MountPoint | None:
    """Find the mount that a clean absolute path lies on: the deepest, topmost one."""
    best: MountPoint | None = None
    for mount in mounts:
        below = mount.target.rstrip("/") + "/"
        if (path == mount.target or path.startswith(below)) and (
            best is None or len(mount.target) >= len(best.target)
        ):
            best = mount
    return best


def inner_path(path: str, mount: MountPoint) -> str:
    """Where in its file system a path on ``mount`` is, relative to that one's root.

    >>> inner_path("/m/a", MountPoint("/sub", "/m", "tmpfs", "tmpfs", {}))
    'sub/a'
    """
    below = posixpath.relpath(path, mount.target)
    return posixpath.normpath(posixpath.join(mount.root, below)).lstrip("/")


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
