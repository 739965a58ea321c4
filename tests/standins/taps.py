"""Tap devices, opened by name or given by descriptor."""

from __future__ import annotations

import fcntl
import os
import struct

_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_NAME_MAX = 15


def open_tap(name: str) -> int:
    """Open an existing tap, or make one as the kernel does when the caller may.

    Raises:
        OSError: the caller may not, it is in use, or it is a multi-queue one.
    """
    if not name or len(name.encode()) > _NAME_MAX:
        raise OSError(22, "Invalid interface name")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_tap(fd: int) -> None:
    """Raise unless a descriptor is a tap's.

    Raises:
        OSError: it is something else.
    """
    fcntl.ioctl(fd, _TUNGETIFF, bytearray(40))
