"""The ttrpc server under trio."""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
from collections.abc import Callable, Iterable
from time import perf_counter_ns

import trio

from shim.ttrpc import status
from shim.ttrpc.connection import (
    CallReceived,
    ConnectionClosed,
    DataReceived,
    RemoteClosed,
    ServerConnection,
    StreamAborted,
)
from shim.ttrpc.framing import FLAG_REMOTE_CLOSED, FLAG_REMOTE_OPEN
from shim.ttrpc.service import CallContext, Method, Service
from shim.ttrpc.stream import STREAM_BUFFER, Inbox, ServerStream, overflow
from shim.ttrpc.transport import HIGH_WATER, Transport

ErrorMap = Callable[[Exception], status.TtrpcError]

_log = logging.getLogger(__name__)
_UCRED = struct.Struct("iII")


def unknown_error(error: Exception) -> status.TtrpcError:
    """Map any exception of a handler to UNKNOWN with its text."""
    return status.TtrpcError(status.UNKNOWN, str(error) or type(error).__name__)


class Server:
    """Serves a set of services on any number of listeners and connections.

    Args:
        services: what to serve.
        check_peer: close connections of a peer with another effective uid or gid; for unix
            sockets only.
        map_error: turns exceptions of handlers, other than TtrpcError, into one.
        stream_buffer: bytes a stream may receive ahead of its handler.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        check_peer: bool = True,
        map_error: ErrorMap = unknown_error,
        stream_buffer: int = STREAM_BUFFER,
    ) -> None:
        self.services = {service.name: service for service in services}
        self.stream_buffer = stream_buffer
        self.draining = False
        self._check_peer = check_peer
        self._map_error = map_error
        self._listening: set[trio.CancelScope] = set()
        self._connections: set[_Connection] = set()
        self._connection_ended = trio.lowlevel.ParkingLot()

    async def serve(
        self,
        listener: socket.socket | trio.socket.SocketType | trio.SocketListener,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve connections until ``drain`` or cancellation.

        Args:
            listener: a bound, listening stream socket; closed at the end.
            task_status: started when connections are accepted.

        Raises:
            ValueError: peers are to be checked on a socket that is not a unix socket.
        """
        if isinstance(listener, socket.socket):
            listener = trio.socket.from_stdlib_socket(listener)
        if not isinstance(listener, trio.SocketListener):
            listener = trio.SocketListener(listener)
        if self._check_peer and listener.socket.family != socket.AF_UNIX:
            raise ValueError("check_peer needs a unix socket")
        async with listener, trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                self._listening.add(scope)
                if self.draining:
                    scope.cancel()
                try:
                    await trio.serve_listeners(
                        self.serve_connection,
                        [listener],
                        handler_nursery=nursery,
                        task_status=task_status,  # type: ignore[arg-type]
                    )
                finally:
                    self._listening.discard(scope)
            await listener.aclose()

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Serve one connected stream socket until it ends and its handlers are done."""
        if self._check_peer and not is_same_user(stream.socket):
            _log.warning("refused a connection of another user")
            await stream.aclose()
            return
        connection = _Connection(self, stream)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._connection_ended.unpark_all()

    async def drain(self, timeout: float) -> bool:
        """Stop gracefully: no new connections and calls, each connection closed when idle.

        Args:
            timeout: seconds after which the remaining handlers are cancelled.

        Returns:
            Whether everything ended in time.
        """
        self.draining = True
        for scope in self._listening:
            scope.cancel()
        for connection in self._connections:
            connection.drain()
        with trio.move_on_after(timeout) as scope:
            await self._all_ended()
        if scope.cancelled_caught:
            for connection in self._connections:
                connection.cancel_scope.cancel()
            await self._all_ended()
        return not scope.cancelled_caught

    async def _all_ended(self) -> None:
        while self._connections:
            await self._connection_ended.park()

    def error_of(self, error: Exception, call: CallContext) -> status.TtrpcError:
        """Give the status for an exception of a handler."""
        if isinstance(error, status.TtrpcError):
            return error
        try:
            mapped = self._map_error(error)
        except Exception:
            _log.exception("mapping an error of %s/%s failed", call.service, call.method)
            return unknown_error(error)
        if mapped.code == status.UNKNOWN:
            _log.error("%s/%s failed", call.service, call.method, exc_info=error)
        return mapped


class _Connection:
    """One connection: its reader dispatches calls, inline or as tasks of its nursery."""

    def __init__(self, server: Server, stream: trio.SocketStream) -> None:
        self.cancel_scope = trio.CancelScope()
        self._server = server
        self._protocol = ServerConnection()
        self._transport = Transport(stream, self._protocol)
        self._inboxes: dict[int, Inbox] = {}
        self._cancelled_at_end: set[trio.CancelScope] = set()
        self._answered = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until the peer leaves and every handler is done."""
        with self.cancel_scope:
            try:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._transport.write_loop)
                    if self._server.draining:
                        self.drain()
                    await self._read()
                    self._end()
            finally:
                self._end()

    def drain(self) -> None:
        """Close once no call is active and everything is written."""
        if not self._transport.closed:
            self._nursery.start_soon(self._close_when_idle)

    async def _close_when_idle(self) -> None:
        while self._protocol.active:
            await self._answered.park()
        try:
            await self._transport.wait_for_room(0)
        except ConnectionClosed:
            return
        self._end()

    def _end(self) -> None:
        self._transport.close()
        for scope in self._cancelled_at_end:
            scope.cancel()
        for inbox in self._inboxes.values():
            inbox.close(ConnectionClosed())
        self._protocol.abandon_all()
        self._answered.unpark_all()

    async def _read(self) -> None:
        transport = self._transport
        while data := await transport.read():
            for event in self._protocol.feed(data):
                if type(event) is CallReceived:
                    self._begin(event)
                elif type(event) is DataReceived:
                    await self._data(event.stream_id, event.payload)
                elif type(event) is RemoteClosed:
                    self._close_inbox(event.stream_id, None)
                elif type(event) is StreamAborted:
                    error = status.TtrpcError(event.code, event.message)
                    self._close_inbox(event.stream_id, error)
                    self._answered.unpark_all()
                if self._protocol.output_size > HIGH_WATER:
                    transport.flush()
                if transport.congested:
                    try:  # a peer that takes no answers gets no more calls served
                        await transport.wait_for_room()
                    except ConnectionClosed:
                        return
                await transport.yield_if_due()
            transport.flush()

    def _close_inbox(self, stream_id: int, error: status.TtrpcError | None) -> None:
        inbox = self._inboxes.get(stream_id)
        if inbox is not None:
            inbox.close(error)

    async def _data(self, stream_id: int, payload: bytes) -> None:
        inbox = self._inboxes.get(stream_id)
        if inbox is None:
            return  # the handler is done, as the client will learn
        if inbox.put(payload):
            await inbox.let_reader_catch_up()
        else:
            error = overflow()
            inbox.close(error)
            self._fail(stream_id, error)

    def _begin(self, event: CallReceived) -> None:
        request = event.request
        stream_id = event.stream_id
        method = self._method(event)
        if isinstance(method, status.TtrpcError):
            self._fail(stream_id, method)
            return
        timeout_ns = request.timeout_ns
        deadline = trio.current_time() + timeout_ns / 1e9 if timeout_ns else math.inf
        context = CallContext(request.service, request.method, request.metadata, deadline)
        if method.streaming:
            inbox = Inbox(self._server.stream_buffer)
            if request.payload and method.client_streaming:
                inbox.put(request.payload)
            if event.flags & FLAG_REMOTE_CLOSED:
                inbox.close()
            self._inboxes[stream_id] = inbox
            stream = ServerStream(stream_id, method, inbox, self._protocol, self._transport)
            self._nursery.start_soon(self._run, stream_id, method, context, request.payload, stream)
        elif method.inline:
            started = perf_counter_ns()
            try:
                message = method.parse(request.payload)
                payload = method.encode(method.handler(message, context))
            except Exception as error:
                self._fail(stream_id, self._server.error_of(error, context))
            else:
                self._protocol.respond(stream_id, payload)
                self._answered.unpark_all()
            method.durations.add(perf_counter_ns() - started)
        else:
            self._nursery.start_soon(self._run, stream_id, method, context, request.payload, None)

    def _method(self, event: CallReceived) -> Method | status.TtrpcError:
        """Find the method of a call, or say why it can't be called so."""
        request = event.request
        service = self._server.services.get(request.service)
        if service is None:
            return status.TtrpcError(status.UNIMPLEMENTED, f"service {request.service}")
        method = service.methods.get(request.method)
        if method is None:
            return status.TtrpcError(status.UNIMPLEMENTED, f"method {request.method}")
        if self._server.draining:
            return status.TtrpcError(status.UNAVAILABLE, "the server is shutting down")
        if request.timeout_ns < 0:
            return status.TtrpcError(status.DEADLINE_EXCEEDED, "the deadline had passed before")
        if event.flags & FLAG_REMOTE_OPEN and not method.client_streaming:
            return status.TtrpcError(
                status.INVALID_ARGUMENT, f"method {request.method} takes one message, not a stream"
            )
        if method.streaming and not event.flags & (FLAG_REMOTE_OPEN | FLAG_REMOTE_CLOSED):
            # A unary caller can't be sent data frames.
            return status.TtrpcError(
                status.INVALID_ARGUMENT, f"method {request.method} must be called as a stream"
            )
        return method

    async def _run(
        self,
        stream_id: int,
        method: Method,
        context: CallContext,
        payload: bytes,
        stream: ServerStream | None,
    ) -> None:
        """Run one ``async def`` handler and answer its call."""
        started = perf_counter_ns()
        try:
            if context.deadline == math.inf and not method.cancel_on_disconnect:
                await self._answer(stream_id, method, context, payload, stream)
                return
            with trio.CancelScope(deadline=context.deadline) as scope:
                if method.cancel_on_disconnect:
                    self._cancelled_at_end.add(scope)
                    if self._transport.closed:
                        scope.cancel()
                try:
                    await self._answer(stream_id, method, context, payload, stream)
                finally:
                    self._cancelled_at_end.discard(scope)
            if scope.cancelled_caught:
                error = status.TtrpcError(
                    status.DEADLINE_EXCEEDED, f"{context.method}: the caller's deadline has passed"
                )
                self._fail(stream_id, error)
        except Exception as error:
            if not (self._transport.closed and isinstance(error, ConnectionClosed)):
                self._fail(stream_id, self._server.error_of(error, context))
        finally:
            method.durations.add(perf_counter_ns() - started)
            self._inboxes.pop(stream_id, None)
            self._transport.flush()
            self._answered.unpark_all()

    async def _answer(
        self,
        stream_id: int,
        method: Method,
        context: CallContext,
        payload: bytes,
        stream: ServerStream | None,
    ) -> None:
        if stream is None:
            result = await method.handler(method.parse(payload), context)
        elif method.client_streaming:
            result = await method.handler(stream, context)
        else:
            result = await method.handler(method.parse(payload), stream, context)
        if method.server_streaming:
            self._protocol.end(stream_id)
        else:
            self._protocol.respond(stream_id, method.encode(result))

    def _fail(self, stream_id: int, error: status.TtrpcError) -> None:
        self._protocol.fail(stream_id, error.code, error.message)
        self._answered.unpark_all()


def is_same_user(peer: trio.socket.SocketType) -> bool:
    """Whether the process at the other end of a unix socket runs as our user and group."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, gid = _UCRED.unpack(raw)
    return (uid, gid) == (os.geteuid(), os.getegid())
