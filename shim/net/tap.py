"""Tap devices: a link on one side, open queues for a VMM on the other.

The link lives exactly as long as a queue of it is open, so one that is made here goes
with the VMM whatever becomes of the shim. Only for a VMM that takes no descriptors is it
made to stay.

Source: the kernel's ``Documentation/networking/tuntap.rst``, ``if_tun.h``.
"""

from __future__ import annotations

import fcntl
import os
import struct

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x100, 0x8000
_REQUEST = struct.Struct("16sH22x")


def open_tap(name: str, queues: int = 1, *, exclusive: bool = True) -> tuple[int, ...]:
    """Make a tap in the calling thread's network namespace.

    Args:
        name: of the link; at most 15 bytes.
        queues: how many to open.
        exclusive: the link must not exist yet.

    Returns:
        A descriptor for each queue; the caller closes them.

    Raises:
        OSError: the kernel refuses; EBUSY when the name is taken.
    """
    made: list[int] = []
    try:
        for number in range(queues):
            made.append(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            attach(made[-1], name, queues, exclusive=exclusive and not number)
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return tuple(made)


def attach(fd: int, name: str, queues: int, *, exclusive: bool = False) -> None:
    """Make an open character device a queue of a tap or macvtap, with offload headers.

    Args:
        fd: the device.
        name: the link; a tap is made when there is none.
        queues: how many queues it will have.
        exclusive: the link must not exist yet.

    Raises:
        OSError: the kernel refuses.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    if queues > 1:
        flags |= _IFF_MULTI_QUEUE
    if exclusive:
        flags |= _IFF_TUN_EXCL
    fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))


def keep(fd: int) -> None:
    """Have a tap outlive its last queue, for a VMM that opens it by name.

    Raises:
        OSError: the kernel refuses.
    """
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)
