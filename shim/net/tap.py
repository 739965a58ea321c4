"""Tap devices: a link on one side, open queues for a VMM on the other.

The link lives exactly as long as a queue of it is open, so one that is made here goes
with the VMM whatever becomes of the shim.

Source: the kernel's ``Documentation/networking/tuntap.rst``, ``if_tun.h``.
"""

from __future__ import annotations

import fcntl
import os
import struct

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x100, 0x8000
_REQUEST = struct.Struct("16sH22x")


def open_tap(name: str, queues: int = 1) -> tuple[int, ...]:
    """Make a tap in the calling thread's network namespace.

    Args:
        name: of the link, which must not exist; at most 15 bytes.
        queues: how many to open.

    Returns:
        A descriptor for each queue; the caller closes them.

    Raises:
        OSError: the kernel refuses; EBUSY when the name is taken.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    if queues > 1:
        flags |= _IFF_MULTI_QUEUE
    made: list[int] = []
    try:
        for number in range(queues):
            made.append(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            exclusive = _IFF_TUN_EXCL if not number else 0
            request = _REQUEST.pack(name.encode(), flags | exclusive)
            fcntl.ioctl(made[-1], _TUNSETIFF, request)
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return tuple(made)
