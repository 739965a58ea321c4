"""The ttrpc client under trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import outcome
import trio

from shim.ttrpc import status
from shim.ttrpc.connection import (
    ClientConnection,
    ConnectionClosed,
    DataReceived,
    RemoteClosed,
    ResponseReceived,
)
from shim.ttrpc.stream import STREAM_BUFFER, ClientStream, Inbox, overflow
from shim.ttrpc.transport import Transport

if TYPE_CHECKING:
    from shim.ttrpc.durations import Durations
    from shim.ttrpc.framing import Buffer
    from shim.ttrpc.messages import Metadata, Response

__all__ = ["Client", "ConnectionClosed", "open_client"]


@asynccontextmanager
async def open_client(
    stream: trio.SocketStream, *, stream_buffer: int = STREAM_BUFFER
) -> AsyncIterator[Client]:
    """Run a client over a connected stream socket, which is closed at the end.

    Args:
        stream: of any family (unix, vsock, ...).
        stream_buffer: bytes a stream may receive ahead of its reader.
    """
    client = Client(stream, stream_buffer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read_loop)
            nursery.start_soon(client.transport.write_loop)
            try:
                yield client
            finally:
                client.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The loops raise nothing, so a lone exception is the caller's own.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    finally:
        client.close()


class Client:
    """Calls over one connection; any number of tasks may use it at once.

    Get one from ``open_client``.

    Attributes:
        durations: of unary calls made by a stub, by the full name of their request.
    """

    def __init__(self, stream: trio.SocketStream, stream_buffer: int) -> None:
        self._protocol = ClientConnection()
        self.transport = Transport(stream, self._protocol)
        self.durations: dict[str, Durations] = {}
        self._stream_buffer = stream_buffer
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._ended = trio.Event()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended; every call fails from then on."""
        return self._ended.is_set()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, from either side."""
        await self._ended.wait()

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> bytes:
        """Make a unary call.

        Args:
            service, method: names, as in "grpc.Health" and "Check".
            payload: the encoded request.
            timeout: seconds, told to the server as well; None waits without limit.
            metadata: pairs of (lower-case) key and value.

        Returns:
            The encoded response.

        Raises:
            TtrpcError: the server's status; DEADLINE_EXCEEDED after ``timeout``;
                RESOURCE_EXHAUSTED if the request is too large.
            ConnectionClosed: the connection ended first.
        """
        if timeout is None:
            return await self._call(service, method, payload, 0, metadata)
        if timeout > 0:
            with trio.move_on_after(timeout):
                timeout_ns = max(1, int(timeout * 1e9))
                return await self._call(service, method, payload, timeout_ns, metadata)
        raise status.TtrpcError(
            status.DEADLINE_EXCEEDED, f"{service}/{method}: no answer within {timeout} s"
        )

    def stream(
        self, service: str, method: str, payload: bytes | None = None, metadata: Metadata = ()
    ) -> ClientStream:
        """Begin a streaming call.

        Args:
            service, method: names.
            payload: the encoded request of a method where only the server streams; None
                where the client sends messages.
            metadata: pairs of (lower-case) key and value.

        Raises:
            TtrpcError: RESOURCE_EXHAUSTED, the request is too large.
            ConnectionClosed: the connection has ended.
        """
        self._check_open()
        stream_id = self._protocol.open_stream(service, method, payload, 0, metadata)
        inbox = self._inboxes[stream_id] = Inbox(self._stream_buffer)
        self.transport.flush()
        return ClientStream(self, stream_id, inbox)

    async def send_on(self, stream_id: int, parts: tuple[Buffer, ...]) -> None:
        """Send a message on a stream (for ``ClientStream``)."""
        self._check_open()
        self._protocol.send_data(stream_id, *parts)
        self.transport.flush()
        await trio.lowlevel.checkpoint()
        await self.transport.wait_for_room()

    def close_send(self, stream_id: int) -> None:
        """Close a stream for sending (for ``ClientStream``)."""
        self._protocol.close_send(stream_id)
        self.transport.flush()

    def forget(self, stream_id: int) -> None:
        """Give a stream up (for ``ClientStream``)."""
        self._inboxes.pop(stream_id, None)
        self._protocol.forget(stream_id)
        self.transport.flush()

    def close(self) -> None:
        """End the connection; pending calls raise ConnectionClosed."""
        self.transport.close()
        if not self._ended.is_set():
            self._ended.set()
            for task in self._waiting.values():
                trio.lowlevel.reschedule(task, outcome.Error(ConnectionClosed()))
            self._waiting.clear()
            for inbox in self._inboxes.values():
                inbox.close(ConnectionClosed())
            self._inboxes.clear()

    async def read_loop(self) -> None:
        """Receive until the connection ends (run by ``open_client``)."""
        try:
            while data := await self.transport.read():
                for event in self._protocol.feed(data):
                    if type(event) is ResponseReceived:
                        self._response(event.stream_id, event.response)
                    elif type(event) is DataReceived:
                        await self._data(event.stream_id, event.payload)
                    elif type(event) is RemoteClosed:
                        self._end_of_stream(event.stream_id, None)
                    await self.transport.yield_if_due()
                self.transport.flush()
        finally:
            self.close()

    def _check_open(self) -> None:
        if self._ended.is_set():
            raise ConnectionClosed

    async def _call(
        self, service: str, method: str, payload: bytes, timeout_ns: int, metadata: Metadata
    ) -> bytes:
        self._check_open()
        if self.transport.congested:
            await self.transport.wait_for_room()
        stream_id = self._protocol.call(service, method, payload, timeout_ns, metadata)
        self.transport.flush()
        self._check_open()
        self._waiting[stream_id] = trio.lowlevel.current_task()

        def abandon(_: object) -> trio.lowlevel.Abort:
            del self._waiting[stream_id]
            self._protocol.forget(stream_id)
            return trio.lowlevel.Abort.SUCCEEDED

        response: Response = await trio.lowlevel.wait_task_rescheduled(abandon)
        if response.code:
            raise status.TtrpcError(response.code, response.message)
        return response.payload

    def _response(self, stream_id: int, response: Response) -> None:
        task = self._waiting.pop(stream_id, None)
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(response))
            return
        if response.code:
            error = status.TtrpcError(response.code, response.message)
            self._end_of_stream(stream_id, error)
            return
        inbox = self._inboxes.get(stream_id)
        fits = inbox is None or inbox.put(response.payload)
        self._end_of_stream(stream_id, None if fits else overflow())

    def _end_of_stream(self, stream_id: int, error: status.TtrpcError | None) -> None:
        # None if it was given up while the events before were handled.
        inbox = self._inboxes.pop(stream_id, None)
        if inbox is not None:
            inbox.close(error)

    async def _data(self, stream_id: int, payload: bytes) -> None:
        inbox = self._inboxes.get(stream_id)
        if inbox is None:
            return  # given up while these events were handled
        if inbox.put(payload):
            await inbox.let_reader_catch_up()
        else:
            self._end_of_stream(stream_id, overflow())
            self.forget(stream_id)
