"""Streaming calls under trio: what handlers and callers hold in their hands."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import trio

from shim.ttrpc import status
from shim.ttrpc.connection import ConnectionClosed, ServerConnection
from shim.ttrpc.transport import Transport

if TYPE_CHECKING:
    from types import TracebackType

    from shim.ttrpc.client import Client
    from shim.ttrpc.framing import Buffer
    from shim.ttrpc.service import Method

STREAM_BUFFER = 4 << 20  # bytes a stream may receive ahead of its reader
_SOFT_LIMIT = 1 << 20
_YIELDS = 64
_MESSAGE_COST = 128  # of a queued message beyond its bytes


class Inbox:
    """Messages received on one stream and not yet taken. One task reads.

    ttrpc has no flow control, and a stream whose reader is slow must neither hold up
    the others nor take memory without bound: when it is full the stream is given up.
    Protocols that move bulk data need windows of their own.

    Args:
        limit: bytes that may wait; a single message of any size fits an empty inbox.
    """

    def __init__(self, limit: int = STREAM_BUFFER) -> None:
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._error: status.TtrpcError | None = None
        self._reader = trio.lowlevel.ParkingLot()

    def put(self, message: bytes) -> bool:
        """Add a message; gives False if there is no room."""
        size = len(message) + _MESSAGE_COST
        if self._messages and self._size + size > self._limit:
            return False
        self._messages.append(message)
        self._size += size
        self._reader.unpark_all()
        return True

    def close(self, error: status.TtrpcError | None = None) -> None:
        """End it; an error is raised to the reader once the messages before it are taken."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._reader.unpark_all()

    async def get(self) -> bytes | None:
        """Take the next message, None at the end.

        Raises:
            TtrpcError: what the inbox was closed with.
        """
        await trio.lowlevel.checkpoint()
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._closed:
                return None
            await self._reader.park()
        message = self._messages.popleft()
        self._size -= len(message) + _MESSAGE_COST
        return message

    async def let_reader_catch_up(self) -> None:
        """Give a reader that keeps busy some turns before more is received."""
        for _ in range(_YIELDS):
            if self._size < _SOFT_LIMIT:
                break
            await trio.lowlevel.checkpoint()


def overflow() -> status.TtrpcError:
    """Give the error of a stream whose reader was too slow."""
    return status.TtrpcError(
        status.RESOURCE_EXHAUSTED, "the stream's receive buffer is full: its reader is too slow"
    )


class ServerStream:
    """The handler's side of a streaming call. Messages are those of the method."""

    def __init__(
        self,
        stream_id: int,
        method: Method,
        inbox: Inbox,
        protocol: ServerConnection,
        transport: Transport,
    ) -> None:
        self.inbox = inbox
        self._stream_id = stream_id
        self._method = method
        self._protocol = protocol
        self._transport = transport

    async def receive(self) -> Any | None:
        """Take the client's next message, None when it will send no more.

        Raises:
            TtrpcError: the stream was given up (INVALID_ARGUMENT for a malformed message).
            ConnectionClosed: the client is gone.
        """
        payload = await self.inbox.get()
        return None if payload is None else self._method.parse(payload)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.receive()) is not None:
            yield message

    async def send(self, message: Any) -> None:
        """Send a message; waits while the client takes none.

        Raises:
            TtrpcError: RESOURCE_EXHAUSTED, the message is too large; CANCELLED, the stream
                has been given up.
            ConnectionClosed: the client is gone.
        """
        await self.send_encoded(self._method.encode(message))

    async def send_encoded(self, *parts: Buffer) -> None:
        """Send a message that is encoded already, in one or more parts that are not joined."""
        if not self._protocol.is_active(self._stream_id):
            if self._transport.closed:
                raise ConnectionClosed
            raise status.TtrpcError(status.CANCELLED, "the stream has been given up")
        self._protocol.send_data(self._stream_id, *parts)
        self._transport.flush()
        await trio.lowlevel.checkpoint()
        await self._transport.wait_for_room()

    def close_send(self) -> None:
        """Tell the client that no more messages come; receiving goes on."""
        self._protocol.close_send(self._stream_id)
        self._transport.flush()


class ClientStream:
    """The caller's side of a streaming call. Messages are encoded.

    Leave it through ``async with`` or ``cancel`` unless it was received to its end.
    """

    def __init__(self, client: Client, stream_id: int, inbox: Inbox) -> None:
        self.inbox = inbox
        self._client = client
        self._stream_id = stream_id

    async def send(self, *parts: Buffer) -> None:
        """Send one message, in one or more parts that are not joined.

        Waits while the server takes none.

        Raises:
            TtrpcError: FAILED_PRECONDITION, the stream is closed for sending;
                RESOURCE_EXHAUSTED, the message is too large.
            ConnectionClosed: the server is gone.
        """
        await self._client.send_on(self._stream_id, parts)

    def close_send(self) -> None:
        """Tell the server that no more messages come; receiving goes on."""
        self._client.close_send(self._stream_id)

    async def receive(self) -> bytes | None:
        """Take the server's next message (or its one result), None after a successful end.

        Raises:
            TtrpcError: the call failed.
            ConnectionClosed: the server is gone.
        """
        return await self.inbox.get()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message

    def cancel(self) -> None:
        """Give the call up; what the server still sends is dropped."""
        self._client.forget(self._stream_id)
        self.inbox.close(status.TtrpcError(status.CANCELLED, "the stream has been given up"))

    async def __aenter__(self) -> ClientStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
