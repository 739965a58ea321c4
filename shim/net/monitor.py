"""Hear from the kernel that a network namespace has changed.

What has changed is not read from the messages: whoever hears looks again, so that nothing
can be missed or taken twice.

Source: rtnetlink(7), netlink(7) on multicast groups.
"""

from __future__ import annotations

import errno
import socket

import trio

_LINK, _NEIGH = 0x1, 0x4
_IPV4_IFADDR, _IPV4_ROUTE = 0x10, 0x40
_IPV6_IFADDR, _IPV6_ROUTE = 0x100, 0x400
_GROUPS = _LINK | _NEIGH | _IPV4_IFADDR | _IPV4_ROUTE | _IPV6_IFADDR | _IPV6_ROUTE
_BUFFER = 1 << 16


class NetworkMonitor:
    """A socket that hears of links, addresses, routes and neighbours.

    Made in the namespace it is to hear of, and stays with it. Call :meth:`close`.

    Raises:
        OSError: the kernel refuses.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))

    def drain(self) -> bool:
        """Take what has come; gives whether anything had."""
        heard = False
        while True:
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return heard
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more came than it could hold
                    raise
            heard = True

    async def wait(self) -> None:
        """Return when something has come since the last :meth:`drain`."""
        await trio.lowlevel.wait_readable(self._socket)

    def close(self) -> None:
        """Close the socket; nobody may wait on it then."""
        self._socket.close()
