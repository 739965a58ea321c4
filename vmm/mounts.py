"""Bind mounts for a VMM's jail. Loads ctypes, so import it only where there is one.

Source: mount(2), umount2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_MS_RDONLY = 0x1
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_SHARED = 0x100000
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Make a file or directory appear at ``target``, which exists.

    Raises:
        OSError: it can't be.
    """
    _mount(source, target, _MS_BIND)
    if read_only:
        _mount(source, target, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def share(target: Path) -> None:
    """Let mounts below a mount point arrive in copies of it in other namespaces.

    Raises:
        OSError: it is no mount point.
    """
    _mount(target, target, _MS_SHARED)


def unmount(target: Path) -> None:
    """Take a mount away, at once for whoever looks; nothing happens if there is none.

    Raises:
        OSError: it can't be.
    """
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise OSError(code, os.strerror(code), str(target))


def mounted_below(directory: Path) -> list[Path]:
    """Return the mount points at and below a directory, the last mounted first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            point = Path(_unescape(line.split(" ", 5)[4]))
            if point == directory or directory in point.parents:
                found.append(point)
    return found[::-1]


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _mount(source: Path, target: Path, flags: int) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
