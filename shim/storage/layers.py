"""Root file systems that come as a list of mounts which build on each other.

containerd's erofs snapshotter (2.2 and later) hands over one disk for each layer of an
image, one for the container's changes, and an overlay whose options name the mounts
before it by their place: ``lowerdir={{ overlay 1 3 }}``. A type's prefix says what is to
be done first, ``format/`` for such templates and ``mkdir/`` for directories.

Source: containerd docs/mounts.md, core/mount/manager, plugins/snapshots/erofs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shim.errors import InvalidArgument
from shim.storage.options import Mount

PREFIXES = ("format", "mkdir")
"""What is done here; ``-info`` tells containerd, which otherwise does it on the host."""

MKDIR = "X-containerd.mkdir.path="
_TEMPLATE = re.compile(r"\{\{\s*(\w+)((?:\s+\d+)*)\s*\}\}")
_DEFAULT_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory to make before a mount.

    Attributes:
        path: where, made with its parents.
        mode: its permissions.
        owner: user and group id.
    """

    path: str
    mode: int = _DEFAULT_MODE
    owner: tuple[int, int] = (0, 0)


def is_stack(mounts: Sequence[Mount]) -> bool:
    """Whether one of the mounts builds on those before it."""
    return any(_prefixes(entry.type)[0] for entry in mounts)


def plain_type(entry: Mount) -> str:
    """The file system of a mount, without what is to be done before.

    Raises:
        InvalidArgument: a prefix that is not known here.
    """
    prefixes, kind = _prefixes(entry.type)
    unknown = [name for name in prefixes if name not in PREFIXES]
    if unknown:
        raise InvalidArgument(f"mount type {entry.type!r}: {unknown[0]} was not resolved")
    return kind


def resolve(entry: Mount, points: Sequence[str]) -> tuple[Mount, tuple[Directory, ...]]:
    """Put the places of the mounts before it into a mount.

    Args:
        entry: the mount.
        points: mount points of those before it.

    Returns:
        A mount that builds on nothing, and the directories to make before.

    Raises:
        InvalidArgument: a template or a directory that can't be understood.
    """
    kind = plain_type(entry)
    prefixes, _ = _prefixes(entry.type)
    source, options = entry.source, entry.options
    if "format" in prefixes:
        source = _filled(source, points)
        options = tuple(_filled(option, points) for option in options)
    made: tuple[Directory, ...] = ()
    if "mkdir" in prefixes:
        made = tuple(_directory(option) for option in options if option.startswith(MKDIR))
        options = tuple(option for option in options if not option.startswith(MKDIR))
    return replace(entry, type=kind, source=source, options=options), made


def _prefixes(kind: str) -> tuple[list[str], str]:
    *prefixes, last = kind.split("/")
    return prefixes, last


def _filled(text: str, points: Sequence[str]) -> str:
    def place(index: int) -> str:
        if not 0 <= index < len(points):
            raise InvalidArgument(f"mount template {text!r}: there is no mount {index} before it")
        return points[index]

    def fill(match: re.Match[str]) -> str:
        name, numbers = match[1], [int(number) for number in match[2].split()]
        if name == "mount" and len(numbers) == 1:
            return place(numbers[0])
        if name == "overlay" and len(numbers) == 2:
            first, last = numbers
            step = 1 if first <= last else -1
            return ":".join(place(index) for index in range(first, last + step, step))
        raise InvalidArgument(f"mount template {text!r}: {match[0]} is not known")

    filled = _TEMPLATE.sub(fill, text)
    if "{{" in filled:
        raise InvalidArgument(f"mount template {text!r} can't be understood")
    return filled


def _directory(option: str) -> Directory:
    path, *rest = option.removeprefix(MKDIR).split(":")
    try:
        mode = int(rest[0], 8) if rest else _DEFAULT_MODE
        owner = (int(rest[1]), int(rest[2])) if len(rest) > 1 else (0, 0)
    except (ValueError, IndexError):
        raise InvalidArgument(f"mount option {option!r}: want PATH[:MODE[:UID:GID]]") from None
    if not path.startswith("/") or len(rest) not in (0, 1, 3):
        raise InvalidArgument(f"mount option {option!r}: want PATH[:MODE[:UID:GID]]")
    return Directory(path, mode, owner)
