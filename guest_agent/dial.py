"""Connections of the host's to the guest's loopback, where port-forward expects a pod's ports.

Source: ip(7), ipv6(7) and connect(2) on sockets that do not block; protos/katapy/extension.proto.
"""

from __future__ import annotations

import _socket
import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .sockets import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .loop import Loop
    from .rpc import Stream

# A full backlog answers nothing; whoever dialled gives up sooner or later.
_CONNECT_SECONDS = 10.0
_EINPROGRESS, _ETIMEDOUT = 115, 110  # errno's table is slow to import
_LOOPBACKS = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))


class Dialer:
    """Connects to ports of the guest."""

    __slots__ = ("_loop",)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def extension(self) -> dict[str, Any]:
        """The handlers of our extension in this class."""
        return {"Dial": self.dial}

    async def dial(self, stream: Stream) -> None:
        """Extension.Dial: until both ends have ended."""
        first = await stream.receive()
        port = first["port"] if first is not None else 0
        if first is None or not 0 < port < 1 << 16:
            raise TtrpcError(status.INVALID_ARGUMENT, f"{port} is no TCP port")
        fd = await self._connected(port)
        try:
            await Relay(self._loop, stream, fd, first["credit"]).run()
        finally:
            self._loop.forget(fd)
            os.close(fd)

    async def _connected(self, port: int) -> int:
        """A descriptor that is watched; IPv4 first, as those who dial localhost do."""
        code = 0
        for family, address in _LOOPBACKS:
            try:
                sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            except OSError:  # no IPv6
                continue
            sock.setblocking(False)
            code = sock.connect_ex((address, port))
            fd = sock.detach()
            self._loop.watch(fd)
            if code == _EINPROGRESS:
                code = await self._finish(fd)
            if not code:
                return fd
            self._loop.forget(fd)
            os.close(fd)
        raise TtrpcError(status.NOT_FOUND, f"port {port} in the guest: {os.strerror(code)}")

    async def _finish(self, fd: int) -> int:
        if not await self._loop.wait_writable(fd, _CONNECT_SECONDS):
            return _ETIMEDOUT
        sock = _socket.socket(fileno=os.dup(fd))
        try:
            return sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        finally:
            sock.close()
