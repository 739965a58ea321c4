"""The ways a host reaches the agent: a virtio-serial port, vsock, a unix socket."""

from __future__ import annotations

import _socket
import fcntl
import os

from .log import log
from .loop import Cancelled
from .resync import Resync
from .rpc import ConnectionLost, Session, Spliced
from .stdio import PIPE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import Loop, Nursery
    from .rpc import Payload, Server

PORT_NAME = "org.katapy.agent.0"
VSOCK_PORT = 1024
_PORTS = "/sys/class/virtio-ports"
_READ_SIZE = 1 << 16
_PORT_PAGE = 4096
_PORT_PAGES = 32
# A host that sent a preface is silent until it has its echo.
_QUIET_SECONDS = 0.2
_PORT_SECONDS = 10.0
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Line:
    """The writing side of a watched, non-blocking descriptor.

    Spliced payloads go through a pipe of the line's own, which at the moment of
    writing holds what is to be written and nothing else: the virtio-serial driver
    miscounts when it is given a part of what is in a pipe.
    """

    __slots__ = ("_fd", "_loop", "_stage", "_staged")

    def __init__(self, loop: Loop, fd: int) -> None:
        self._fd = fd
        self._loop = loop
        self._staged = 0
        self._stage: tuple[int, int] | None = None

    async def write(self, session: Session | None, parts: list[Payload]) -> None:
        """Write payloads, all of them.

        Once the first byte is out the rest follows, or the peer could not find the
        next frame: a cancellation that comes in between takes effect afterwards. So
        whoever catches an exception knows that the frame was not sent.

        Raises:
            ConnectionLost: the peer is gone, or the session was given up meanwhile.
        """
        begun = cancelled = False
        rest = [part for part in parts if part]
        while rest:
            if session is not None and session.lost:
                raise ConnectionLost
            try:
                self._write_some(rest)
            except BlockingIOError:
                try:
                    await self._loop.wait_writable(self._fd)
                except Cancelled:
                    if not begun:
                        raise
                    cancelled = True
                continue
            except OSError as error:
                log("warn", "connection broke", error=error)
                if session is not None:
                    session.lose()
                raise ConnectionLost from error
            begun = True
        if cancelled and self._loop.current is not None:
            self._loop.current.cancel()

    def _write_some(self, rest: list[Payload]) -> None:
        """Write the first of the payloads, all or part of it, and take that off the list."""
        first = rest[0]
        if isinstance(first, Spliced):
            source, sink = self._stage or self._make_stage()
            if not self._staged:
                self._staged = os.splice(first.fd, sink, len(first), flags=_SPLICE_FLAGS)
            written = os.splice(source, self._fd, self._staged, flags=_SPLICE_FLAGS)
            if not written:
                raise OSError("the port took bytes and did not send them")
            self._staged -= written
            left: Payload = Spliced(first.fd, len(first) - written)
        else:
            written = os.write(self._fd, first)
            left = memoryview(first)[written:]
        if left:
            rest[0] = left
        else:
            del rest[0]

    def _make_stage(self) -> tuple[int, int]:
        self._stage = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(self._stage[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return self._stage

    def reset(self) -> None:
        """Drop what a lost session left half written, and wake who still waits to write."""
        self._loop.nudge(self._fd)
        self._staged = 0
        if self._stage is not None:
            stage, self._stage = self._stage, None
            for fd in stage:
                os.close(fd)


async def find_port(loop: Loop, name: str = PORT_NAME) -> str:
    """Device path of a virtio-serial port, waiting until the driver has made it.

    Raises:
        FileNotFoundError: it didn't appear within ten seconds.
    """
    waited = 0.0
    while waited < _PORT_SECONDS:
        for port in os.listdir(_PORTS) if os.path.isdir(_PORTS) else ():
            with open(f"{_PORTS}/{port}/name") as file:
                if file.read().strip() == name:
                    return f"/dev/{port}"
        await loop.sleep(0.005)
        waited += 0.005
    raise FileNotFoundError(f"no virtio-serial port is named {name}")


class PortReader:
    """Reads a virtio-serial port, many of the driver's buffers in one system call.

    A read gives what is in one buffer, 4 KiB at most; the host's main loop fills them one
    by one. readv asks for the next buffer as long as they are full.

    Args:
        fd: the port, non-blocking.
    """

    __slots__ = ("_fd", "_pages", "_view")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._view = memoryview(bytearray(_PORT_PAGE * _PORT_PAGES))
        starts = range(0, len(self._view), _PORT_PAGE)
        self._pages = [self._view[start : start + _PORT_PAGE] for start in starts]

    def read(self) -> memoryview:
        """Return what the port has; nothing when its host end is closed.

        The bytes are good until the next call.

        Raises:
            BlockingIOError: it has nothing.
        """
        return self._view[: os.readv(self._fd, self._pages)]


async def serve_port(server: Server, fd: int) -> None:
    """Serve one connection after the other on a virtio-serial port, for ever.

    Args:
        server: the methods.
        fd: the port, non-blocking.
    """
    loop = server.loop
    loop.watch(fd)
    line = Line(loop, fd)
    reader = PortReader(fd)
    resync = Resync()
    session: Session | None = None

    def drop() -> None:
        nonlocal session
        if session is not None:
            session.lose()
            line.reset()
            session = None

    async def begin(preface: bytes) -> None:
        nonlocal session
        drop()
        log("debug", "host connected")
        await line.write(None, [preface])
        session = Session(server, line.write)

    while True:
        try:
            data = reader.read()
        except BlockingIOError:
            quiet = _QUIET_SECONDS if resync.suspect else None
            woken = await loop.wait_readable(fd, quiet)
            if not woken and resync.suspect:
                await begin(resync.accept())
            continue
        for is_preface, part in resync.feed(data):
            if is_preface:
                await begin(bytes(part))
            elif session is not None:
                session.received(part)
        if not data:  # closed, and it stays so until an edge says otherwise
            drop()
            resync.lose()
            await loop.wait_readable(fd)


async def serve_connection(server: Server, fd: int) -> None:
    """Serve one connected stream socket until its peer closes it; closes it too."""
    loop = server.loop
    loop.watch(fd)
    line = Line(loop, fd)
    session = Session(server, line.write)
    try:
        while True:
            try:
                data = os.read(fd, _READ_SIZE)
            except BlockingIOError:
                await loop.wait_readable(fd)
                continue
            except OSError as error:
                # Not the agent's end, whatever it is: the host may connect again. A VM that
                # was loaded from a snapshot has lost its vsock connections (ENOTCONN).
                log("info", "connection ended", error=error)
                break
            if not data:
                break
            session.received(data)
    finally:
        session.lose()
        line.reset()
        loop.forget(fd)
        os.close(fd)


async def serve_listener(server: Server, nursery: Nursery, listener: _socket.socket) -> None:
    """Accept connections for ever and serve each in a task of the nursery."""
    loop = server.loop
    listener.setblocking(False)
    loop.watch(listener.fileno())
    while True:
        try:
            fd, _address = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            await loop.wait_readable(listener.fileno())
            continue
        except ConnectionAbortedError:
            continue
        os.set_blocking(fd, False)
        nursery.spawn(serve_connection(server, fd))


def listen_vsock() -> _socket.socket:
    """Listen on the agent's vsock port, for any peer.

    Raises:
        OSError: the guest has no vsock device.
    """
    listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    listener.bind((_socket.VMADDR_CID_ANY, VSOCK_PORT))
    listener.listen(16)
    return listener


def listen_unix(path: str) -> _socket.socket:
    """Listen on a unix socket, replacing a file left at its path.

    Raises:
        OSError: the path can't be bound.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(16)
    return listener
