"""A directory that nobody else sees, and that ends with whoever has it open."""

from __future__ import annotations

import ctypes
import os

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_CREATE = 6
_libc = ctypes.CDLL(None, use_errno=True)


def open_detached_directory() -> int:
    """Open a file system in memory that is mounted nowhere (fsmount(2)).

    Files in it are reached by ``/proc/self/fd/N``, and they are gone with the descriptor,
    so a process that is killed leaves none of them.

    Returns:
        The descriptor of its root.

    Raises:
        OSError: it takes more rights than there are.
    """
    context = _call(_FSOPEN, b"tmpfs", _CLOEXEC)
    try:
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
