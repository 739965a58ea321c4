"""A ttrpc server on the agent's loop.

Each request runs as a task of its own, so a call that blocks for hours (WaitProcess,
GetOOMEvent) holds nobody up. When a connection is lost its waiting calls are
cancelled, while those that change something run to their end.

Source: ttrpc PROTOCOL.md.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]

from protos import lite
from protos.tables import ttrpc as tables
from shim.ttrpc import status
from shim.ttrpc.framing import (
    DATA,
    FLAG_NO_DATA,
    FLAG_REMOTE_CLOSED,
    FLAG_REMOTE_OPEN,
    MESSAGE_MAX,
    REQUEST,
    RESPONSE,
    FrameDecoder,
    encode_header,
)
from shim.ttrpc.status import TtrpcError

from .log import log
from .loop import Cancelled, Event, Lock


class Spliced:
    """Bytes that wait in a pipe, to be sent without being read.

    Args:
        fd: the pipe; must stay open, and its bytes unread, while this is being sent.
        size: how many.
    """

    __slots__ = ("_size", "fd")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._size = size

    def __len__(self) -> int:
        return self._size


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any

    from .loop import Loop, Nursery, Task

    Handler = Callable[[Any], Awaitable[Mapping[str, Any] | None]]
    Payload = bytes | memoryview | Spliced
    Write = Callable[["Session", list[Payload]], Awaitable[None]]


_JOIN_MAX = 1 << 15


class ConnectionLost(Exception):
    """The peer is gone, what was to be sent can't be."""


class Deferred:
    """Handlers of one module that is imported with the first call to one of them.

    Under emulation a module costs milliseconds of each boot, and few pods call all.

    Args:
        load: imports the module and gives its handlers by method name.
    """

    __slots__ = ("_handlers", "_load")

    def __init__(self, load: Callable[[], Mapping[str, Any]]) -> None:
        self._load = load
        self._handlers: Mapping[str, Any] | None = None

    def find(self, name: str) -> Any:
        """The handler of one method."""
        if self._handlers is None:
            self._handlers = self._load()
        return self._handlers[name]


class Method:
    """One RPC: its tables, its handler, and how the handler is run.

    Args:
        row: (request table, response table, client streams, server streams).
        handler: takes the request message, or the Stream of a streaming method.
        waits: the call only waits or reads, so it ends with its connection.
    """

    __slots__ = ("handler", "request", "response", "streaming", "waits")

    def __init__(self, row: Any, handler: Any, waits: bool = False) -> None:
        self.request, self.response, client_streams, server_streams = row
        self.streaming: bool = client_streams or server_streams
        self.handler = handler
        self.waits = waits or self.streaming


class Server:
    """The methods, and the nursery in which their calls run."""

    __slots__ = ("loop", "methods", "nursery")

    def __init__(self, loop: Loop, nursery: Nursery) -> None:
        self.loop = loop
        self.nursery = nursery
        self.methods: dict[str, dict[str, Method]] = {}

    def add(
        self,
        services: Mapping[str, Mapping[str, Any]],
        handlers: Mapping[str, Any],
        waits: frozenset[str] = frozenset(),
    ) -> None:
        """Register services. A method without a handler answers UNIMPLEMENTED.

        Args:
            services: the SERVICES of a table module.
            handlers: by method name; a Deferred has them later.
            waits: names of the methods whose calls end with their connection.
        """
        for service, rows in services.items():
            table = self.methods.setdefault(service, {})
            for name, row in rows.items():
                table[name] = Method(row, handlers.get(name), name in waits)

    def find(self, service: str, name: str) -> Method:
        """Look a method up.

        Raises:
            TtrpcError: UNIMPLEMENTED.
        """
        method = self.methods.get(service, {}).get(name)
        if method is None:
            raise TtrpcError(status.UNIMPLEMENTED, f"unknown method {service}/{name}")
        if method.handler is None:
            text = f"{service}/{name} is not implemented by this agent"
            raise TtrpcError(status.UNIMPLEMENTED, text)
        if isinstance(method.handler, Deferred):
            method.handler = method.handler.find(name)
        return method


class Stream:
    """The server's end of one streaming call."""

    __slots__ = ("_arrived", "_half_closed", "_queue", "_session", "_stream_id", "method")

    def __init__(self, session: Session, stream_id: int, method: Method) -> None:
        self._session = session
        self._stream_id = stream_id
        self._queue: deque[lite.Message] = deque()
        self._arrived = Event(session.server.loop)
        self._half_closed = False
        self.method = method

    def arrive(self, message: lite.Message | None) -> None:
        """Take in a message from the peer, or with None the end of its messages."""
        if message is None:
            self._half_closed = True
        elif not self._half_closed:
            self._queue.append(message)
        self._arrived.pulse()

    async def receive(self) -> lite.Message | None:
        """Wait for the peer's next message; None when it has closed its side."""
        while not self._queue:
            if self._half_closed:
                return None
            await self._arrived.wait()
        message: lite.Message = self._queue.popleft()
        return message

    async def send(self, values: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            ConnectionLost: the peer is gone.
        """
        await self.send_encoded(lite.encode(self.method.response, values))

    async def send_encoded(self, *parts: Payload) -> None:
        """Send one message given as encoded parts, without joining them."""
        await self._session.send(self._stream_id, DATA, 0, *parts)


class Session:
    """One connection of one client: its streams, its calls, its order of writing.

    Args:
        server: the methods.
        write: writes buffers to the peer, all of them, and raises ConnectionLost.
    """

    __slots__ = ("_calls", "_decoder", "_last_id", "_lock", "_streams", "_write", "lost", "server")

    def __init__(self, server: Server, write: Write) -> None:
        self.server = server
        self.lost = False
        self._write = write
        self._lock = Lock(server.loop)
        self._decoder = FrameDecoder()
        self._streams: dict[int, Stream] = {}
        self._calls: set[Task] = set()
        self._last_id = 0

    def lose(self) -> None:
        """The connection is gone: cancel what waits on its behalf."""
        self.lost = True
        for task in self._calls:
            task.cancel()

    def received(self, data: bytes | memoryview) -> None:
        """Take in bytes from the peer and start the calls they complete."""
        for stream_id, kind, flags, payload in self._decoder.feed(data):
            if payload is None:
                self._reject(
                    stream_id,
                    status.RESOURCE_EXHAUSTED,
                    f"message exceeds the limit of {MESSAGE_MAX} bytes",
                )
            elif kind == REQUEST:
                self._request(stream_id, flags, payload)
            elif kind == DATA:
                self._data(stream_id, flags, payload)

    def _spawn(self, coro: Any) -> Task:
        return self.server.nursery.spawn(coro)

    def _reject(self, stream_id: int, code: int, message: str) -> None:
        self._spawn(self._respond(stream_id, TtrpcError(code, message), b""))

    def _request(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id & 1 or stream_id <= self._last_id:
            text = f"stream id {stream_id} must be odd and above {self._last_id}"
            self._reject(stream_id, status.INVALID_ARGUMENT, text)
            return
        self._last_id = stream_id
        try:
            request = lite.decode(tables.Request, payload)
            method = self.server.find(request["service"], request["method"])
            message = lite.decode(method.request, request["payload"])
        except TtrpcError as error:
            self._reject(stream_id, error.code, error.message)
            return
        except lite.DecodeError as error:
            self._reject(stream_id, status.INVALID_ARGUMENT, f"malformed request: {error}")
            return
        if method.streaming:
            stream = Stream(self, stream_id, method)
            if not flags & (FLAG_REMOTE_OPEN | FLAG_REMOTE_CLOSED) or request["payload"]:
                stream.arrive(message)
            if flags & FLAG_REMOTE_CLOSED:
                stream.arrive(None)
            self._streams[stream_id] = stream
            task = self._spawn(self._stream_call(stream_id, method, stream))
        else:
            timed = request["timeout_nano"] > 0
            task = self._spawn(self._unary_call(stream_id, method, message, timed))
        if method.waits:
            self._calls.add(task)
            task.on_end(self._calls.discard)
            if request["timeout_nano"] > 0:
                task.cancel_after(request["timeout_nano"] / 1e9)

    def _data(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_id:
                self._reject(stream_id, status.INVALID_ARGUMENT, f"no stream {stream_id}")
            return
        if not flags & FLAG_NO_DATA:
            try:
                stream.arrive(lite.decode(stream.method.request, payload))
            except lite.DecodeError as error:
                log("error", "malformed stream message", error=error)
                stream.arrive(None)
        if flags & FLAG_REMOTE_CLOSED:
            stream.arrive(None)

    async def _unary_call(
        self, stream_id: int, method: Method, message: lite.Message, timed: bool
    ) -> None:
        failure = None
        payload = b""
        try:
            payload = lite.encode(method.response, await method.handler(message) or {})
            if len(payload) > MESSAGE_MAX - 64:
                text = f"response exceeds the limit of {MESSAGE_MAX} bytes"
                failure = TtrpcError(status.RESOURCE_EXHAUSTED, text)
        except Cancelled:
            if self.lost:
                raise
            # Without a deadline of its own it is the agent that ends.
            failure = (
                TtrpcError(status.DEADLINE_EXCEEDED, "deadline exceeded")
                if timed
                else TtrpcError(status.CANCELLED, "cancelled")
            )
        except Exception as error:
            failure = as_status(error)
        await self._respond(stream_id, failure, payload)

    async def _stream_call(self, stream_id: int, method: Method, stream: Stream) -> None:
        try:
            await method.handler(stream)
        except ConnectionLost:
            return
        except Cancelled:
            if not self.lost:
                await self._respond(stream_id, TtrpcError(status.CANCELLED, "cancelled"), b"")
            return
        except Exception as error:
            await self._respond(stream_id, as_status(error), b"")
            return
        finally:
            del self._streams[stream_id]
        await self._try_send(stream_id, DATA, FLAG_REMOTE_CLOSED | FLAG_NO_DATA)

    async def _respond(self, stream_id: int, failure: TtrpcError | None, payload: bytes) -> None:
        response: dict[str, Any] = {"payload": payload}
        if failure is not None:
            response = {"status": {"code": failure.code, "message": failure.message}}
        await self._try_send(stream_id, RESPONSE, 0, lite.encode(tables.Response, response))

    async def _try_send(self, stream_id: int, kind: int, flags: int, *parts: bytes) -> None:
        try:
            await self.send(stream_id, kind, flags, *parts)
        except ConnectionLost:
            pass  # nobody is left to tell

    async def send(self, stream_id: int, kind: int, flags: int, *parts: Payload) -> None:
        """Send one frame; frames of different tasks are never mixed.

        Raises:
            ConnectionLost: the peer is gone.
        """
        header = encode_header(sum(map(len, parts)), stream_id, kind, flags)
        pieces: list[Payload] = [header]
        for part in parts:  # a write is an exit to the host, so few of them
            last = pieces[-1]
            if isinstance(part, bytes) and isinstance(last, bytes) and len(part) <= _JOIN_MAX:
                pieces[-1] = last + part
            else:
                pieces.append(part)
        async with self._lock:
            await self._write(self, pieces)


def as_status(error: Exception) -> TtrpcError:
    """The status with which an exception of a handler is answered."""
    if isinstance(error, TtrpcError):
        return error
    log("error", "call failed", error=repr(error))
    return TtrpcError(status.INTERNAL, str(error) or type(error).__name__)
