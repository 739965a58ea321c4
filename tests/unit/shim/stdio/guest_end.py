"""The agent's end of a Stdio stream, for tests: it keeps the credit rules strictly."""

from __future__ import annotations

import math
from collections.abc import Iterable

import trio

from shim.stdio import frames
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

STDIN_WINDOW = 256 << 10


class GuestEnd:
    """A ttrpc client whose one stream leads to a scripted agent in memory.

    ``stream``, ``send``, ``receive`` and ``close_send`` are for the shim.
    """

    def __init__(self) -> None:
        self._to_shim, self._from_guest = trio.open_memory_channel[bytes](math.inf)
        self.attached = trio.Event()
        self.credit = {frames.STDOUT: 0, frames.STDERR: 0}
        self.credit_granted = trio.Condition()
        self.stdin = bytearray()
        self.stdin_eof = trio.Event()
        self.stdin_window = STDIN_WINDOW
        self.max_ahead = 0
        self.first_frame = b""
        self.detached = trio.Event()
        self.refuse = False

    def stream(self, service: str, method: str) -> GuestEnd:
        assert (service, method) == ("katapy.agent.v1.Extension", "Stdio")
        return self

    def close_send(self) -> None:
        self.detached.set()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuse:
            raise TtrpcError(status.UNAVAILABLE, "ttrpc: closed")
        if not self.attached.is_set():
            self.first_frame = data
            granted = frames.decode_frame(data).credit
            self.credit = dict.fromkeys(self.credit, granted)
            self.attached.set()
            if self.stdin_window:
                self._push(frames.credit_frame(frames.STDIN, self.stdin_window))
            return
        frame = frames.decode_frame(data)
        if frame.channel == frames.STDIN:
            self.stdin += frame.data
            self.stdin_window -= len(frame.data)
            assert self.stdin_window >= 0, "the shim sent more stdin than it had credit for"
            if frame.data:
                self.stdin_window += len(frame.data)
                self._push(frames.credit_frame(frames.STDIN, len(frame.data)))
            if frame.eof:
                self.stdin_eof.set()
            return
        async with self.credit_granted:
            self.credit[frame.channel] += frame.credit
            self.credit_granted.notify_all()

    async def receive(self) -> bytes | None:
        try:
            message = await self._from_guest.receive()
        except trio.EndOfChannel:
            return None
        if message == b"LOST":
            raise TtrpcError(status.UNAVAILABLE, "ttrpc: closed")
        return message

    async def output(self, channel: int, chunks: Iterable[bytes]) -> None:
        """Send chunks as credit allows; what is on its way counts as ahead."""
        await self.attached.wait()
        window = self.credit[channel]
        for chunk in chunks:
            while chunk:
                async with self.credit_granted:
                    while self.credit[channel] <= 0:
                        await self.credit_granted.wait()
                    part = chunk[: self.credit[channel]]
                    self.credit[channel] -= len(part)
                self.max_ahead = max(self.max_ahead, window - self.credit[channel])
                self._push(frames.data_frame(channel, part))
                chunk = chunk[len(part) :]

    def eof(self, channel: int) -> None:
        self._push(frames.eof_frame(channel))

    def end(self) -> None:
        self._to_shim.close()

    def lose(self) -> None:
        """Break the connection behind everything that was sent."""
        self._push(b"LOST")

    def finish(self) -> None:
        self.eof(frames.STDOUT)
        self.eof(frames.STDERR)
        self.end()

    def _push(self, frame: bytes) -> None:
        self._to_shim.send_nowait(frame)
