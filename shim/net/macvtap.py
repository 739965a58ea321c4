"""macvtap: a tap that takes a link's frames itself, without traffic control.

In passthru mode it has the link to itself, keeps its hardware address, and sees frames
for every other too. Its queues are opened through a character device, whose number the
namespace's own sysfs tells; both are seen in a mount namespace that ends with the thread.

Source: the kernel's ``drivers/net/macvtap.c``, ``if_link.h``; sysfs(5).
"""

from __future__ import annotations

import os
import stat
import struct

from shim import syscalls
from shim.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_NEWLINK,
    RouteSocket,
    attribute,
    link_message,
)
from shim.net.rtnl import IFF_UP
from shim.net.tap import attach
from shim.storage.options import MS_PRIVATE, MS_RDONLY, MS_REC
from shim.storage.syscalls import mount

_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO = 3, 4, 5, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_MACVLAN_MODE, _PASSTHRU = 1, 8


def add_macvtap(channel: RouteSocket, name: str, lower: int, mtu: int) -> None:
    """Make a macvtap on a link and set it up.

    Args:
        channel: a netlink socket of the link's namespace.
        name: of the new link.
        lower: the number of the link it takes over.
        mtu: in bytes.

    Raises:
        OSError: the kernel has none, or the link is taken.
    """
    mode = attribute(_IFLA_MACVLAN_MODE, struct.pack("=I", _PASSTHRU))
    info = attribute(_IFLA_INFO_KIND, b"macvtap\0") + attribute(_IFLA_INFO_DATA, mode)
    body = link_message(0, IFF_UP, IFF_UP)
    body += attribute(_IFLA_IFNAME, name.encode() + b"\0")
    body += attribute(_IFLA_LINK, struct.pack("=I", lower))
    body += attribute(_IFLA_MTU, struct.pack("=I", mtu)) + attribute(_IFLA_LINKINFO, info)
    channel.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def open_macvtap(name: str, queues: int = 1) -> tuple[int, ...]:
    """Open queues of a macvtap in the calling thread's network namespace.

    The thread gets a mount namespace of its own; it must end soon after.

    Args:
        name: the link.
        queues: how many to open.

    Returns:
        A descriptor for each queue; the caller closes them.

    Raises:
        OSError: the kernel refuses.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("sysfs", "/sys", "sysfs", MS_RDONLY)
    folder = f"/sys/class/net/{name}/macvtap"
    (node,) = os.listdir(folder)
    with open(f"{folder}/{node}/dev", encoding="ascii") as file:
        major, minor = (int(part) for part in file.read().split(":"))
    mount("tmpfs", "/sys", "tmpfs", 0)
    os.mknod("/sys/tap", stat.S_IFCHR | 0o600, os.makedev(major, minor))
    made: list[int] = []
    try:
        for _ in range(queues):
            made.append(os.open("/sys/tap", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            attach(made[-1], name, queues)
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return tuple(made)
