"""The ttrpc server under trio: one reader a connection, a task only for calls that wait.

``def`` handlers run inside the reader; ``async def`` ones in tasks of the server, so
that a lost connection leaves nothing half done, except those that only wait, which end
with it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

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
from shim.ttrpc.service import CallContext, Method, Service
from shim.ttrpc.status import TtrpcError
from shim.ttrpc.stream import Inbox, ServerStream, overflow
from shim.ttrpc.transport import Transport

_UCRED = struct.Struct("3i")
_ACCEPT_PAUSE_S = 0.1
# The process or the system is out of descriptors or memory: they come back.
_ACCEPT_RETRY = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_LOOK_S = 0.02


def unknown_error(error: Exception) -> TtrpcError:
    """Give any exception the status that Go's server gives it."""
    if isinstance(error, TtrpcError):
        return error
    return TtrpcError(status.UNKNOWN, f"{type(error).__name__}: {error}")


class Server:
    """Serves method tables on a listening socket.

    Args:
        services: the tables.
        check_peer: take connections of this process's own user and group only
            (SO_PEERCRED), as containerd's shims do.
        map_error: gives a handler's exception its status.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        check_peer: bool = True,
        map_error: Callable[[Exception], TtrpcError] = unknown_error,
    ) -> None:
        self._services = {service.name: service.methods for service in services}
        self._check_peer = check_peer
        self._map_error = map_error
        self._connections: set[_Connection] = set()
        self._accepting = trio.CancelScope()

    async def serve(
        self,
        listener: trio.socket.SocketType,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve connections until cancelled, or until drained.

        Args:
            listener: a listening stream socket; closed at the end.
            task_status: started once connections are taken.
        """
        with listener:
            async with trio.open_nursery() as nursery:
                task_status.started()
                with self._accepting:
                    while True:
                        accepted = await _accept(listener)
                        if accepted is not None and self._welcome(accepted):
                            nursery.start_soon(self._serve_connection, accepted, nursery)

    async def drain(self, timeout: float) -> None:
        """Take no more connections, let running calls end, close what is idle then.

        Args:
            timeout: seconds running calls may take; what still runs then is cut off.
        """
        self._accepting.cancel()
        deadline = trio.current_time() + timeout
        # Idleness is a matter of several counters; the end of a shim may look at them.
        while self._busy() and trio.current_time() < deadline:
            await trio.sleep(_LOOK_S)
        for connection in list(self._connections):
            connection.transport.close()

    async def serve_stream(self, stream: trio.SocketStream) -> None:
        """Serve one connected stream until it ends."""
        async with trio.open_nursery() as nursery:
            connection = _Connection(self._services, self._map_error, stream, nursery)
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)

    async def _serve_connection(
        self, accepted: trio.socket.SocketType, nursery: trio.Nursery
    ) -> None:
        connection = _Connection(
            self._services, self._map_error, trio.SocketStream(accepted), nursery
        )
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _busy(self) -> bool:
        return any(connection.busy for connection in self._connections)

    def _welcome(self, accepted: trio.socket.SocketType) -> bool:
        if not self._check_peer or accepted.family != socket.AF_UNIX:
            return True
        found = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, gid = _UCRED.unpack(found)
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return True
        accepted.close()
        return False


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType | None:
    try:
        accepted, _ = await listener.accept()
    except ConnectionError:
        return None  # the peer left before we came
    except OSError as error:
        if error.errno not in _ACCEPT_RETRY:
            raise
        await trio.sleep(_ACCEPT_PAUSE_S)
        return None
    return accepted


class _Connection:
    """One client: its protocol, its socket and its calls."""

    def __init__(
        self,
        services: dict[str, dict[str, Method]],
        map_error: Callable[[Exception], TtrpcError],
        stream: trio.SocketStream,
        lasting: trio.Nursery,
    ) -> None:
        self._services = services
        self._map_error = map_error
        self._protocol = ServerConnection()
        self.transport = Transport(stream, self._protocol)
        self._lasting = lasting
        self._waiting: trio.Nursery
        self._inboxes: dict[int, Inbox] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._patient: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether a call other than a patient one is without its answer."""
        return self._protocol.active > len(self._patient) or self.transport.unsent > 0

    async def run(self) -> None:
        """Serve until the client is gone."""
        try:
            async with trio.open_nursery() as nursery:
                self._waiting = nursery
                nursery.start_soon(self.transport.write_loop)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.transport.close()
            for inbox in self._inboxes.values():
                inbox.close(ConnectionClosed())

    async def _read(self) -> None:
        while data := await self.transport.read():
            for event in self._protocol.feed(data):
                if type(event) is CallReceived:
                    self._call(event)
                elif type(event) is DataReceived:
                    await self._data(event.stream_id, event.payload)
                elif type(event) is RemoteClosed:
                    self._close_inbox(event.stream_id, None)
                elif type(event) is StreamAborted:
                    self._close_inbox(event.stream_id, TtrpcError(event.code, event.message))
                    if scope := self._scopes.get(event.stream_id):
                        scope.cancel()
                await self.transport.yield_if_due()
            self.transport.flush()
            if self.transport.congested:
                await self._room()

    async def _room(self) -> None:
        with contextlib.suppress(ConnectionClosed):  # the next read sees the end
            await self.transport.wait_for_room()

    def _call(self, event: CallReceived) -> None:
        request = event.request
        methods = self._services.get(request.service)
        if methods is None:
            self._protocol.fail(event.stream_id, status.UNIMPLEMENTED, f"service {request.service}")
            return
        method = methods.get(request.method)
        if method is None:
            self._protocol.fail(event.stream_id, status.UNIMPLEMENTED, f"method {request.method}")
            return
        if request.timeout_ns < 0:
            self._protocol.fail(
                event.stream_id, status.DEADLINE_EXCEEDED, "the deadline was over on arrival"
            )
            return
        deadline = math.inf
        if request.timeout_ns:
            deadline = trio.current_time() + request.timeout_ns / 1e9
        context = CallContext(request.service, request.method, tuple(request.metadata), deadline)
        if method.inline:
            self._run_inline(event.stream_id, method, request.payload, context)
            return
        arguments: tuple[Any, ...]
        if method.streaming:
            inbox = self._inboxes[event.stream_id] = Inbox()
            stream = ServerStream(event.stream_id, method, inbox, self._protocol, self.transport)
            arguments = (stream, context)
        else:
            arguments = (context,)
        nursery = self._lasting
        if method.cancel_on_disconnect:
            nursery = self._waiting
            self._patient.add(event.stream_id)
        nursery.start_soon(self._run_task, event.stream_id, method, request.payload, arguments)

    def _run_inline(
        self, stream_id: int, method: Method, payload: bytes, context: CallContext
    ) -> None:
        try:
            response = method.handler(method.parse(payload), context)
            self._protocol.respond(stream_id, method.encode(response))
        except Exception as error:
            self._fail(stream_id, error)

    async def _run_task(
        self, stream_id: int, method: Method, payload: bytes, arguments: tuple[Any, ...]
    ) -> None:
        deadline = arguments[-1].deadline
        try:
            with trio.CancelScope(deadline=deadline) as scope:
                if method.streaming:
                    self._scopes[stream_id] = scope
                first = () if method.client_streaming else (method.parse(payload),)
                response = await method.handler(*first, *arguments)
                if method.server_streaming:
                    self._protocol.end(stream_id)
                else:
                    self._protocol.respond(stream_id, method.encode(response))
            if scope.cancelled_caught:
                self._protocol.fail(
                    stream_id, status.DEADLINE_EXCEEDED, f"{method.name}: deadline exceeded"
                )
        except Exception as error:
            self._fail(stream_id, error)
        finally:
            self._scopes.pop(stream_id, None)
            self._inboxes.pop(stream_id, None)
            self._patient.discard(stream_id)
            self.transport.flush()

    def _fail(self, stream_id: int, error: Exception) -> None:
        mapped = self._map_error(error)
        code = mapped.code if mapped.code != status.OK else status.UNKNOWN
        self._protocol.fail(stream_id, code, mapped.message)

    async def _data(self, stream_id: int, payload: bytes) -> None:
        inbox = self._inboxes.get(stream_id)
        if inbox is None:
            return
        if inbox.put(payload):
            await inbox.let_reader_catch_up()
        else:
            error = overflow()
            self._protocol.fail(stream_id, error.code, error.message)
            self._close_inbox(stream_id, error)

    def _close_inbox(self, stream_id: int, error: TtrpcError | None) -> None:
        if inbox := self._inboxes.get(stream_id):
            inbox.close(error)
