"""A connection that is carried into the guest by a stream of our extension, with credits.

Source: protos/katapy/extension.proto (ConnectionFrame).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio
from google.protobuf.message import DecodeError

from protos.katapy.extension_pb2 import ConnectionFrame
from shim.ttrpc.client import ConnectionClosed
from shim.ttrpc.status import TtrpcError

if TYPE_CHECKING:
    from shim.ttrpc.client import Client
    from shim.ttrpc.stream import ClientStream

WINDOW = 1 << 18
CHUNK = 1 << 16
SERVICE = "katapy.agent.v1.Extension"
_log = logging.getLogger(__name__)

BROKEN = (TtrpcError, ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)


async def dial(client: Client, port: int, host: trio.SocketStream) -> None:
    """Carry a connection of the host's to a TCP port of the guest's loopback; closes it.

    It is closed at once when nobody listens there.
    """
    async with host:
        try:
            async with client.stream(SERVICE, "Dial") as stream:
                first = ConnectionFrame(port=port, credit=WINDOW)
                await stream.send(first.SerializeToString())
                try:
                    await Relay(stream, host).run()
                finally:
                    give_up(stream)
        except* BROKEN as error:  # of a relay's task it comes in a group
            _log.debug("port %d in the guest: a connection broke: %s", port, error.exceptions[0])


class Relay:
    """Carries bytes both ways until both have ended."""

    def __init__(self, stream: ClientStream, host: trio.SocketStream) -> None:
        self._stream = stream
        self._host = host
        self._credit = 0
        self._changed = trio.Event()
        self._sending = trio.CancelScope()
        self._fetching = trio.CancelScope()
        self._waiting = bytearray()  # what the host's side has yet to take
        self._room = WINDOW
        self._ended = False
        self._arrived = trio.Event()

    async def run(self) -> None:
        """Return when nothing more is to come from either side."""
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
        with contextlib.suppress(*BROKEN, DecodeError):
            while (data := await self._stream.receive()) is not None:
                frame = ConnectionFrame.FromString(data)
                self._room -= len(frame.data)
                if self._room < 0:
                    _log.warning("a connection of the guest's broke: it sent beyond its credit")
                    break
                if not self._ended:
                    self._waiting += frame.data
                self._ended = self._ended or frame.eof
                self._arrived.set()
                if frame.credit:
                    self._credit += frame.credit
                    self._changed.set()
        # The guest is done, or has given up what was not at its end.
        self._fetching.cancel()
        if not self._ended:
            self._sending.cancel()

    async def _to_host(self) -> None:
        while self._waiting or not self._ended:
            if not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
                continue
            data, self._waiting = self._waiting, bytearray()
            try:
                await self._host.send_all(data)
            except trio.BrokenResourceError:
                return  # it closed; what is on its way from it still arrives
            self._room += len(data)
            with contextlib.suppress(*BROKEN):  # the guest may need no more credit
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


def give_up(stream: ClientStream) -> None:
    """Close our side of a stream, whatever the guest's has come to."""
    with contextlib.suppress(*BROKEN):  # it may be gone already
        stream.close_send()
