"""Unix sockets of the host, served in the guest.

The agent listens at a socket in the guest and tells the host of each connection; the
host opens a stream for it, and bytes go both ways with credits.

Source: unix(7); protos/katapy/extension.proto.
"""

from __future__ import annotations

import _socket
import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .channel import listen_unix
from .covers import Cover
from .log import log
from .loop import Event, Nursery

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .loop import Loop, Task
    from .rpc import Stream

WINDOW = 1 << 18
_CHUNK = 1 << 16
_BACKLOG = 128
# A connection that the host does not ask for within this time is closed.
_PICKUP_SECONDS = 10.0


class Sockets:
    """The sockets listened at, and the connections that the host has not taken yet."""

    __slots__ = ("_loop", "_serial", "_waiting")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._serial = 0
        self._waiting: dict[int, int] = {}

    @property
    def extension(self) -> dict[str, Any]:
        """The handlers of our extension in this class."""
        return {"ListenSocket": self.listen, "Connection": self.connection}

    async def listen(self, stream: Stream) -> None:
        """Extension.ListenSocket: until the host closes its side."""
        request = await stream.receive()
        path = request["path"] if request is not None else ""
        if request is None or not path.startswith("/"):
            raise TtrpcError(status.INVALID_ARGUMENT, f"{path!r} is no absolute path")
        try:
            os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
            listener = listen_unix(path)
            listener.listen(_BACKLOG)
            os.chown(path, request["uid"], request["gid"])
            os.chmod(path, request["mode"] & 0o777)
        except OSError as error:
            text = f"socket {path}: {error.strerror or error}"
            raise TtrpcError(status.INVALID_ARGUMENT, text) from None
        mine: list[int] = []
        cover = Cover(path, request["cover"]) if request["cover"] else None
        try:
            _put(cover)
            await stream.send({"connection": 0})
            async with Nursery(self._loop) as nursery:
                accepting = nursery.spawn(self._accept(listener, stream, mine))
                while await stream.receive() is not None:
                    _put(cover)
                accepting.cancel()
        finally:
            if cover is not None:
                cover.take_off()
            listener.close()
            for number in mine:
                self._drop(number)
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    async def _accept(self, listener: _socket.socket, stream: Stream, mine: list[int]) -> None:
        """Tell the host of each connection; their numbers go to `mine`."""
        fd = listener.fileno()
        listener.setblocking(False)
        self._loop.watch(fd)
        try:
            while True:
                try:
                    accepted, _address = listener._accept()  # type: ignore[attr-defined]
                except BlockingIOError:
                    await self._loop.wait_readable(fd)
                    continue
                except ConnectionAbortedError:
                    continue
                os.set_blocking(accepted, False)
                self._serial += 1
                self._waiting[self._serial] = accepted
                mine.append(self._serial)
                self._expire(self._serial)
                await stream.send({"connection": self._serial})
        finally:
            self._loop.forget(fd)

    def _expire(self, number: int) -> None:
        self._loop.call_later(_PICKUP_SECONDS, lambda: self._drop(number))

    def _drop(self, number: int) -> None:
        fd = self._waiting.pop(number, None)
        if fd is not None:
            os.close(fd)

    async def connection(self, stream: Stream) -> None:
        """Extension.Connection."""
        first = await stream.receive()
        fd = self._waiting.pop(first["connection"], None) if first is not None else None
        if first is None or fd is None:
            raise TtrpcError(status.NOT_FOUND, "no such connection is waiting")
        self._loop.watch(fd)
        try:
            await Relay(self._loop, stream, fd, first["credit"]).run()
        finally:
            self._loop.forget(fd)
            os.close(fd)


def _put(cover: Cover | None) -> None:
    if cover is None:
        return
    try:
        cover.put()
    except OSError as error:
        text = f"socket {error.filename}: {error.strerror}"
        raise TtrpcError(status.NOT_FOUND, text) from None


class Relay:
    """One connection and the stream that carries it."""

    __slots__ = ("_credit", "_fd", "_inbox", "_loop", "_more", "_readable", "_stream")

    def __init__(self, loop: Loop, stream: Stream, fd: int, credit: int) -> None:
        self._loop = loop
        self._stream = stream
        self._fd = fd
        self._credit = credit
        self._more = Event(loop)
        self._inbox: list[bytes | None] = []
        self._readable = Event(loop)

    async def run(self) -> None:
        """Carry bytes both ways until both have ended, or either end is gone."""
        await self._stream.send({"credit": WINDOW})
        async with Nursery(self._loop) as outer:
            async with Nursery(self._loop) as both:
                to_host = both.spawn(self._to_host())
                to_guest = both.spawn(self._to_guest())
                receiver = outer.spawn(self._receive(to_host, to_guest))
            receiver.cancel()

    async def _receive(self, to_host: Task, to_guest: Task) -> None:
        ended = False
        while True:
            frame = await self._stream.receive()
            if frame is None:  # the host is done, or has given up what was not at its end
                to_host.cancel()
                if not ended:
                    to_guest.cancel()
                return
            ended = ended or frame["eof"]
            if frame["data"]:
                self._inbox.append(frame["data"])
            if frame["eof"]:
                self._inbox.append(None)
            self._readable.pulse()
            self._credit += frame["credit"]
            self._more.pulse()

    async def _to_host(self) -> None:
        while True:
            while self._credit <= 0:
                await self._more.wait()
            try:
                data = os.read(self._fd, min(_CHUNK, self._credit))
            except BlockingIOError:
                await self._loop.wait_readable(self._fd)
                continue
            except OSError:
                data = b""
            if not data:
                await self._stream.send({"eof": True})
                return
            self._credit -= len(data)
            await self._stream.send({"data": data})

    async def _to_guest(self) -> None:
        while True:
            while not self._inbox:
                await self._readable.wait()
            data = self._inbox.pop(0)
            if data is None:
                self._shut_down()
                return
            try:
                await self._write(data)
            except OSError as error:
                log("debug", "socket peer is gone", error=error)
                await self._stream.send({"eof": True})
                return
            await self._stream.send({"credit": len(data)})

    async def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await self._loop.wait_writable(self._fd)

    def _shut_down(self) -> None:
        sock = _socket.socket(fileno=os.dup(self._fd))
        try:
            sock.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # the peer is gone
        finally:
            sock.close()
