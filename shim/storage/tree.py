"""A directory's content at one moment, and what leads from one moment to the next.

kubelet's atomic writer puts each version of a volume into a directory of its own and
then swaps the link ``..data``; names that a container uses are links through that. A
version that is not the current one is left out here, so what is seen is always whole.

Source: Kubernetes pkg/volume/util/atomic_writer.go.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

DATA = "..data"


class Changed(Exception):
    """The directory changed while it was read: look again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or symbolic link.

    Attributes:
        mode: with the file type.
        size: of a file, in bytes.
        stamp: changes when a file's content may have.
        target: of a link.
    """

    mode: int
    uid: int
    gid: int
    size: int = 0
    stamp: tuple[int, int, int] = (0, 0, 0)
    target: str = ""


Tree = Mapping[str, Entry]
"""Path relative to the root ("" for the root itself) → what is there."""


def scan(root: str) -> dict[str, Entry]:
    """Read a directory tree, or a single file, whose path is then "".

    Sockets, FIFOs and device nodes are left out. Links are not followed, except that
    the root may be one.

    Raises:
        Changed: it changed meanwhile.
        OSError: it can't be read.
    """
    info = os.stat(root)
    if not stat.S_ISDIR(info.st_mode):
        return {"": _entry(info)}
    current = _link(f"{root}/{DATA}")
    found = {"": _entry(info)}
    try:
        _scan_below(root, "", current, found)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Changed(root) from error
    if _link(f"{root}/{DATA}") != current:
        raise Changed(root)
    return found


def _scan_below(root: str, folder: str, current: str, found: dict[str, Entry]) -> None:
    with os.scandir(f"{root}/{folder}" if folder else root) as entries:
        for item in entries:
            path = f"{folder}/{item.name}" if folder else item.name
            hidden = not folder and item.name.startswith("..") and item.name != DATA
            if hidden and current and item.name != current:
                continue  # another version, or one in the making
            info = item.stat(follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(f"{root}/{path}")
                found[path] = Entry(info.st_mode, info.st_uid, info.st_gid, target=target)
            elif stat.S_ISDIR(info.st_mode):
                found[path] = _entry(info)
                _scan_below(root, path, current, found)
            elif stat.S_ISREG(info.st_mode):
                found[path] = _entry(info)


def _entry(info: os.stat_result) -> Entry:
    if stat.S_ISDIR(info.st_mode):
        return Entry(info.st_mode, info.st_uid, info.st_gid)
    stamp = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
    return Entry(info.st_mode, info.st_uid, info.st_gid, info.st_size, stamp)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do, in this order, so that a reader sees the old version or the new one.

    Attributes:
        put: paths to make or replace: folders, files, then ``..data``, then other links.
        remove: paths to take away, each with all that is below it.
    """

    put: tuple[str, ...]
    remove: tuple[str, ...]


def difference(old: Tree, new: Tree) -> Steps:
    """Plan the way from one content to another. An entry that changed its type goes first."""
    put = [path for path, entry in new.items() if old.get(path) != entry]
    put.sort(key=lambda path: (_rank(path, new[path]), path))
    gone = sorted(path for path in old if path not in new or _other_type(old[path], new[path]))
    roots: list[str] = []
    for path in gone:
        if not roots or not path.startswith(roots[-1] + "/"):
            roots.append(path)
    return Steps(tuple(put), tuple(roots))


def replaced(old: Tree, new: Tree) -> list[str]:
    """The paths whose type changed: they have to go before the new ones can come."""
    return sorted(p for p in old if p in new and _other_type(old[p], new[p]))


def _rank(path: str, entry: Entry) -> int:
    if stat.S_ISDIR(entry.mode):
        return 0
    if stat.S_ISREG(entry.mode):
        return 1
    return 2 if path == DATA else 3


def _other_type(old: Entry, new: Entry) -> bool:
    return stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode)


def chunks(path: str, size: int, limit: int) -> Iterator[tuple[int, bytes]]:
    """Read ``size`` bytes of a file in pieces of at most ``limit``: offset and bytes.

    Raises:
        Changed: it is gone or shorter by now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Changed(path) from error
    try:
        offset = 0
        while True:
            data = os.read(fd, min(limit, size - offset))
            if not data and offset < size:
                raise Changed(path)
            yield offset, data
            offset += len(data)
            if offset >= size:
                return
    finally:
        os.close(fd)
