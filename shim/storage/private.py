"""The mount namespace of a shim and its helpers.

Source: mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os

from shim.errors import Internal
from shim.storage import syscalls

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_SLAVE = 1 << 19


def enter_private_mount_namespace() -> None:
    """Move this process, which must have one thread, into a mount namespace of its own.

    Mounts of the host still arrive in it; its own are seen by its children alone and
    vanish with the last of them.

    Raises:
        Internal: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise Internal(f"cannot make a mount namespace: {os.strerror(number)}")
    try:
        syscalls.mount("none", "/", "", MS_REC | MS_SLAVE)
    except OSError as err:
        raise Internal(f"cannot detach the mounts from the host's: {err.strerror}") from err
