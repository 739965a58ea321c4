"""The few system calls Python 3.11 has no function for, through ctypes; loaded late.

Source: prctl(2), umount(2), setns(2), unshare(2), mallopt(3).
"""

from __future__ import annotations

import ctypes
import errno
import os

PR_SET_CHILD_SUBREAPER = 36
PR_SCHED_CORE = 62
PR_SCHED_CORE_CREATE = 1
PIDTYPE_PROCESS_GROUP = 2
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_STACKED_MOUNTS = 64
CLONE_NEWNET = 0x4000_0000
CLONE_NEWNS = 0x2_0000
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def prctl(option: int, *arguments: int) -> None:
    """Call prctl(2) with up to four arguments.

    Raises:
        OSError: the kernel refuses.
    """
    padded = [*arguments, 0, 0, 0, 0][:4]
    result = _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(value) for value in padded))
    _check(result, f"prctl({option})")


def umount(target: str, flags: int) -> None:
    """Unmount ``target``.

    Raises:
        OSError: EINVAL when nothing is mounted there.
    """
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"umount {target}")


def unmount_all(target: str) -> None:
    """Unmount lazily whatever is mounted at ``target``; nothing there is a success.

    Raises:
        OSError: the kernel refuses; EBUSY when more is mounted there than can be ours.
    """
    for _ in range(_STACKED_MOUNTS):
        try:
            umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return
            raise
    raise OSError(errno.EBUSY, f"more than {_STACKED_MOUNTS} mounts on top of each other", target)


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into a namespace.

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def unshare(kind: int) -> None:
    """Give the calling thread a namespace of its own.

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc.unshare(ctypes.c_int(kind)), "unshare")


def mallopt(parameter: int, value: int) -> None:
    """Tune the C allocator; a libc without mallopt is left as it is."""
    function = getattr(_libc, "mallopt", None)
    if function is not None:
        function(ctypes.c_int(parameter), ctypes.c_int(value))
