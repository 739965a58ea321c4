"""A unix socket of the host, reachable at a path in the guest.

The agent listens there; each connection it accepts becomes a stream of our extension,
whose other end is a connection to the host's socket. Only bytes travel: a datagram
socket or a passed descriptor has no way through a VM.

Source: protos/katapy/extension.proto; unix(7).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from protos.katapy.extension_pb2 import ConnectionFrame, ListenSocketRequest, SocketAccepted
from shim.errors import Unavailable
from shim.ttrpc.client import ConnectionClosed
from shim.ttrpc.status import TtrpcError

if TYPE_CHECKING:
    from shim.ttrpc.client import Client
    from shim.ttrpc.stream import ClientStream

WINDOW = 1 << 18
CHUNK = 1 << 16
CONNECT_TIMEOUT_S = 5.0

_SERVICE = "katapy.agent.v1.Extension"
_BROKEN = (TtrpcError, ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Owner and permissions of the socket in the guest."""

    uid: int
    gid: int
    mode: int


class SocketProxy:
    """One proxied socket.

    Args:
        client: the connection to the agent.
        host_path: the socket on the host; connected anew for each connection, so a
            server that is started again is found.
        guest_path: where the guest listens; at most 107 bytes.
        owner: whose the guest's socket is.
    """

    def __init__(self, client: Client, host_path: str, guest_path: str, owner: Owner) -> None:
        self._client = client
        self._host_path = host_path
        self._guest_path = guest_path
        self._owner = owner

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once the guest listens.

        Raises:
            Unavailable: the guest doesn't listen (any more).
        """
        request = ListenSocketRequest(
            path=self._guest_path,
            mode=self._owner.mode,
            uid=self._owner.uid,
            gid=self._owner.gid,
        )
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with self._client.stream(_SERVICE, "ListenSocket") as stream:
                    try:
                        await stream.send(request.SerializeToString())
                        while (data := await stream.receive()) is not None:
                            number = SocketAccepted.FromString(data).connection
                            if number:
                                nursery.start_soon(self._serve, number)
                            else:
                                task_status.started()
                    finally:
                        _give_up(stream)
            except _BROKEN as error:
                failure = error
            nursery.cancel_scope.cancel()
        raise Unavailable(f"socket {self._host_path} in the guest: {failure or 'it has ended'}")

    async def _serve(self, number: int) -> None:
        try:
            async with self._client.stream(_SERVICE, "Connection") as stream:
                # Taken in any case: one that leads nowhere ends for the guest at once.
                first = ConnectionFrame(connection=number, credit=WINDOW)
                await stream.send(first.SerializeToString())
                try:
                    host = await self._connect()
                    if host is not None:
                        async with host:
                            await _Relay(stream, host).run()
                finally:
                    _give_up(stream)
        except _BROKEN as error:
            _log.debug("socket %s: a connection broke: %s", self._host_path, error)

    async def _connect(self) -> trio.SocketStream | None:
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                return await trio.open_unix_socket(self._host_path)
        except (OSError, trio.TooSlowError) as error:
            _log.warning("socket %s: nobody answers on the host: %s", self._host_path, error)
            return None


class _Relay:
    """Carries bytes both ways until both have ended."""

    def __init__(self, stream: ClientStream, host: trio.SocketStream) -> None:
        self._stream = stream
        self._host = host
        self._credit = 0
        self._changed = trio.Event()
        self._sending = trio.CancelScope()
        self._fetching = trio.CancelScope()
        self._send, self._inbox = trio.open_memory_channel[bytes](WINDOW)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            async with trio.open_nursery() as both:
                both.start_soon(self._within, self._sending, self._to_host)
                both.start_soon(self._within, self._fetching, self._to_guest)
            nursery.cancel_scope.cancel()

    async def _within(self, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
        with scope:
            await work()

    async def _receive(self) -> None:
        ended = False
        with contextlib.suppress(*_BROKEN):
            while (data := await self._stream.receive()) is not None:
                frame = ConnectionFrame.FromString(data)
                if frame.data:
                    self._send.send_nowait(frame.data)
                if frame.eof:
                    ended = True
                    self._send.close()
                if frame.credit:
                    self._credit += frame.credit
                    self._changed.set()
        # The guest is done, or has given up what was not at its end.
        self._fetching.cancel()
        if not ended:
            self._sending.cancel()

    async def _to_host(self) -> None:
        async for data in self._inbox:
            try:
                await self._host.send_all(data)
            except trio.BrokenResourceError:
                return  # it closed; what is on its way from it still arrives
            with contextlib.suppress(*_BROKEN):  # the guest may need no more credit
                await self._frame(credit=len(data))
        with contextlib.suppress(trio.BrokenResourceError):
            await self._host.send_eof()

    async def _to_guest(self) -> None:
        while True:
            while self._credit <= 0:
                self._changed = trio.Event()
                await self._changed.wait()
            try:
                data = await self._host.receive_some(min(CHUNK, self._credit))
            except trio.BrokenResourceError:
                data = b""
            if not data:
                await self._frame(eof=True)
                return
            self._credit -= len(data)
            await self._frame(data=data)

    async def _frame(self, *, data: bytes = b"", eof: bool = False, credit: int = 0) -> None:
        frame = ConnectionFrame(data=data, eof=eof, credit=credit)
        await self._stream.send(frame.SerializeToString())


def _give_up(stream: ClientStream) -> None:
    with contextlib.suppress(*_BROKEN):  # it may be gone already
        stream.close_send()
