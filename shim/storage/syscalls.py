"""The mount system calls Python does not have.

Each raises OSError with the errno. They may block for as long as a file system likes,
so call them in a worker thread.

Source: mount(2), umount2(2), mount_setattr(2), open_tree(2), move_mount(2).
"""

from __future__ import annotations

import ctypes
import os

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x100000

# The same on every architecture: they are newer than the unified numbers.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_CLONE_FS = 0x200

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(fstype) if fstype else None,
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )
    _check(result, target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def open_tree(path: str, *, recursive: bool = False) -> int:
    """Clone the mount at ``path`` into a detached one and return its descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags, where=path)


def move_mount(tree: int, target: str) -> None:
    """Attach a detached mount at ``target``."""
    _syscall(
        _SYS_MOVE_MOUNT,
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        MOVE_MOUNT_F_EMPTY_PATH,
        where=target,
    )


def mount_setattr(
    tree: int,
    *,
    attributes: int,
    propagation: int = 0,
    user_namespace: int = 0,
    recursive: bool = False,
    where: str = "",
) -> None:
    """Set MOUNT_ATTR_ ``attributes`` on a detached mount; ``where`` is for errors."""
    attr = _MountAttr(attr_set=attributes, propagation=propagation, userns_fd=user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _syscall(
        _SYS_MOUNT_SETATTR,
        tree,
        b"",
        flags,
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
        where=where,
    )


def unshare_directory() -> None:
    """Give the calling thread a working directory of its own (CLONE_FS).

    The thread must not be used for anything else afterwards.
    """
    _check(_libc.unshare(_CLONE_FS), "unshare")


def _syscall(number: int, *arguments: object, where: str) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    _check(result, where)
    return result


def _check(result: int, where: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), where)
