"""A file that a guest uses as swap space.

Source: Linux include/linux/swap.h (union swap_header), as mkswap(8) writes it.
"""

from __future__ import annotations

import errno
import os
import struct

_MAGIC = b"SWAPSPACE2"
_HEADER = 1024  # the first bytes are left to boot loaders
_VERSION = 1
_LEAST_PAGES = 10


def make_swap_file(path: str, size: int, page_size: int) -> None:
    """Make a sparse file with a swap header; the host backs what the guest writes.

    Kernels of either byte order read it. Blocks: use a thread.

    Args:
        path: where; its directory is made.
        size: bytes, rounded down to whole pages, ten at least.
        page_size: bytes of the guest's pages.

    Raises:
        OSError: it can't be made, or the host has no room for all of it; nothing half-made is left.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    pages = max(size // page_size, _LEAST_PAGES)
    room = os.statvfs(os.path.dirname(path))
    if pages * page_size > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, pages * page_size)
        os.pwrite(fd, struct.pack("<III", _VERSION, pages - 1, 0), _HEADER)
        os.pwrite(fd, _MAGIC, page_size - len(_MAGIC))
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
