"""System calls the os module doesn't have: mount and its kin.

`_ctypes` is used directly: the ctypes package around it costs several times as
much to import, for conveniences not needed here.

Source: mount(2), open_tree(2), move_mount(2), umount(2), reboot(2), swapon(2), prctl(2),
settimeofday(2).
"""

from __future__ import annotations

import _ctypes
import os
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

CLONE_NEWNS = 0x20000
CLONE_NEWPID = 0x20000000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_SYMLINKS = 0x10
_SYS_OPENAT2 = 437  # on every architecture
_NO_MAGIC_LINKS = 0x02
_IN_ROOT = 0x10
_ATTEMPTS = 128
_FUNCFLAG_CDECL = 1
_FUNCFLAG_USE_ERRNO = 8
_PR_SET_CHILD_SUBREAPER = 36
_RB_POWER_OFF = 0x4321FEDC


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_handle: int = _ctypes.dlopen(None, 2)  # type: ignore[arg-type]
_functions: dict[str, Any] = {}


def _call(name: str, *args: object, path: str | None = None) -> int:
    function = _functions.get(name)
    if function is None:
        function = _functions[name] = _Function(_ctypes.dlsym(_handle, name))
    result: int = function(*args)
    if result < 0:
        code: int = _ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", path)
    return result


def unshare(flags: int) -> None:
    """Leave namespaces; see unshare(2).

    Raises:
        OSError: the kernel refuses.
    """
    _call("unshare", _Int(flags))


def setns(fd: int, flags: int) -> None:
    """Enter a namespace; see setns(2).

    Raises:
        OSError: the kernel refuses.
    """
    _call("setns", _Int(fd), _Int(flags))


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Mount; see mount(2).

    Raises:
        OSError: with the target as its file name.
    """
    _call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(fstype) or None,
        _Long(flags),
        os.fsencode(data) or None,
        path=target,
    )


def umount(target: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """Unmount, lazily and without following a symbolic link unless told otherwise.

    Raises:
        OSError: EINVAL when nothing is mounted there.
    """
    _call("umount2", os.fsencode(target), flags, path=target)


def clone_tree(path: str) -> int:
    """A descriptor of a copy, attached nowhere, of the mounts from a path on; open_tree(2).

    Raises:
        OSError: with the path as its file name.
    """
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _call("open_tree", _AT_FDCWD, os.fsencode(path), flags, path=path)


def attach_tree(fd: int, path: str) -> None:
    """Mount such a copy; see move_mount(2).

    Raises:
        OSError: with the path as its file name.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
    _call("move_mount", fd, b"", _AT_FDCWD, os.fsencode(path), flags, path=path)


def open_below(folder: int, path: str, flags: int) -> int:
    """Open a path as if a folder were the root: neither links nor `..` lead out of it.

    Raises:
        OSError: it isn't there, or was moved about all the time.
    """
    size = 8
    how = b"".join(
        number.to_bytes(size, byteorder) for number in (flags, 0, _IN_ROOT | _NO_MAGIC_LINKS)
    )
    arguments = (_Long(folder), os.fsencode(path), how, _Long(len(how)))
    for attempt in range(_ATTEMPTS):
        try:
            return _call("syscall", _Long(_SYS_OPENAT2), *arguments, path=path)
        except BlockingIOError:  # something on the way was renamed just now
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def power_off() -> None:
    """Switch the machine off; only returns by raising OSError."""
    _call("reboot", _RB_POWER_OFF)


def swapon(path: str) -> None:
    """Use a block device as swap space.

    Raises:
        OSError: it can't be used.
    """
    _call("swapon", os.fsencode(path), 0, path=path)


def become_subreaper() -> None:
    """Adopt the orphans among this process's descendants."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, _Long(1), _Long(0), _Long(0), _Long(0))
