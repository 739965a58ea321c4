"""A private view of directories that have one place for the whole host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_REC_SHARED = 0x4000 | 0x100000


def have_own(directories: Iterable[Path]) -> None:
    """Give this process and its future children empty directories of their own.

    They are in a mount namespace that ends with the last of these processes, so neither the
    host nor a test run beside us sees what is put there (mount_namespaces(7)). Its mounts are
    shared with the namespaces that these processes make, as an init system does it for a host.

    Raises: OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what)

    check(libc.unshare(_CLONE_NEWNS), "unshare the mount namespace")
    check(libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None), "make all mounts private")
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        target = os.fsencode(directory)
        check(libc.mount(b"tmpfs", target, b"tmpfs", 0, b"mode=711"), f"mount {directory}")
    check(libc.mount(b"none", b"/", None, _MS_REC_SHARED, None), "make all mounts shared")
