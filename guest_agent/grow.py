"""Lets a mounted file system fill a disk that has grown.

ext4 and xfs grow while they are mounted, by an ioctl on any of their files; so no
programs of theirs are needed in the guest.

Source: linux/ext4.h (EXT4_IOC_RESIZE_FS), xfs_fs.h (XFS_IOC_FSGROWFSDATA).
"""

from __future__ import annotations

import fcntl
import os
from sys import byteorder

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .ioctls import EXT4_IOC_RESIZE_FS, XFS_IOC_FSGEOMETRY_V1, XFS_IOC_FSGROWFSDATA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import Loop

_XFS_GEOMETRY_SIZE = 112
_SECTOR = 512
_SIZE_SECONDS = 5.0
_POLL_SECONDS = 0.02


async def grow(loop: Loop, path: str, size: int) -> None:
    """Grow the file system mounted at a path.

    Args:
        loop: to wait on for the disk's new size.
        path: its mount point.
        size: bytes it is to have; 0 for all of its disk.

    Raises:
        TtrpcError: NOT_FOUND without a mount there; UNIMPLEMENTED for a file system that
            can't grow; FAILED_PRECONDITION when the disk is smaller than that.
    """
    fstype, device = _mounted(path)
    if fstype not in ("ext2", "ext3", "ext4", "xfs"):
        raise TtrpcError(status.UNIMPLEMENTED, f"{path}: {fstype} can't grow while mounted")
    capacity = await _capacity(loop, device, size)
    size = size or capacity
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fstype == "xfs":
            geometry = fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY_V1, bytes(_XFS_GEOMETRY_SIZE))
            block = int.from_bytes(geometry[0:4], byteorder)
            # The share of it that inodes may take is set by the same call: keep it.
            wanted = (size // block).to_bytes(8, byteorder) + geometry[28:32] + bytes(4)
            fcntl.ioctl(fd, XFS_IOC_FSGROWFSDATA, wanted)
        else:
            block = os.fstatvfs(fd).f_bsize
            fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, (size // block).to_bytes(8, byteorder))
    except OSError as error:
        text = f"{path}: {fstype} does not grow to {size} bytes: {error.strerror}"
        raise TtrpcError(status.INTERNAL, text) from None
    finally:
        os.close(fd)


def _mounted(path: str) -> tuple[str, str]:
    """File system type and sysfs folder of the disk mounted at a path."""
    found = ("", "")
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split(" ")
            if fields[4] == path:
                found = (fields[fields.index("-") + 1], f"/sys/dev/block/{fields[2]}")
    if not found[0]:
        raise TtrpcError(status.NOT_FOUND, f"nothing is mounted at {path}")
    return found


async def _capacity(loop: Loop, folder: str, wanted: int) -> int:
    """Bytes of a disk, waited for until the host's change has arrived."""
    waited = 0.0
    while True:
        with open(f"{folder}/size") as file:
            capacity = int(file.read()) * _SECTOR
        if capacity >= wanted:
            return capacity
        if waited >= _SIZE_SECONDS:
            text = f"the disk has {capacity} bytes, {wanted} are asked for"
            raise TtrpcError(status.FAILED_PRECONDITION, text)
        await loop.sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS
