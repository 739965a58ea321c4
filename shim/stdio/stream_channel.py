"""Stdio over one stream of our agent's extension, with credits both ways.

Source: protos/katapy/extension.proto.
"""

from __future__ import annotations

import contextlib
import math
from typing import Protocol

import trio

from shim.stdio import frames
from shim.stdio.channel import WINDOW, GuestLost, StdinGone
from shim.stdio.frames import STDERR, STDIN, STDOUT
from shim.ttrpc.status import TtrpcError

STDIN_CHUNK = 256 << 10
"""Bytes of stdin in one frame, at most."""
SMALL = 4 << 10
"""Output in pieces below this is joined while it waits: each would cost more than its bytes."""
_JOINED_MAX = 64 << 10
_OVERHEAD_MAX = 64

_SERVICE = "katapy.agent.v1.Extension"
_BROKEN = (TtrpcError, trio.BrokenResourceError, trio.ClosedResourceError)

Piece = bytearray | memoryview


class MessageStream(Protocol):
    """The client's side of a bidirectional ttrpc stream."""

    async def send(self, data: bytes, /) -> None:
        """Send one message."""

    async def receive(self) -> bytes | None:
        """Return the next message; None at the end."""

    def close_send(self) -> None:
        """Say that no more messages follow."""


class StreamClient(Protocol):
    """What is needed of a ttrpc client."""

    def stream(self, service: str, method: str, /) -> MessageStream:
        """Open a stream."""


class StreamChannel:
    """A :class:`~shim.stdio.channel.GuestChannel` on ``Extension/Stdio``.

    Args:
        client: the connection to the agent.
        container_id: the process's container.
        exec_id: its exec id; empty or equal to ``container_id`` for the init.
    """

    def __init__(self, client: StreamClient, container_id: str, exec_id: str = "") -> None:
        self._client = client
        self._ids = (container_id, exec_id)
        self._stream: MessageStream | None = None
        self._inbox: dict[int, trio.MemoryReceiveChannel[Piece]] = {}
        self._outbox: dict[int, trio.MemorySendChannel[Piece]] = {}
        self._joined: dict[int, bytearray | None] = {STDOUT: None, STDERR: None}
        for channel in (STDOUT, STDERR):
            # Unbounded here: the credits bound it, and one output must never block
            # the other behind it.
            self._outbox[channel], self._inbox[channel] = trio.open_memory_channel[Piece](math.inf)
        self._allowed = {STDOUT: WINDOW, STDERR: WINDOW}
        self._owed = {STDOUT: 0, STDERR: 0}
        self._stdin_credit = 0
        self._stdin_changed = trio.Event()
        self._ended = False
        self._failure: GuestLost | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        try:
            self._stream = stream = self._client.stream(_SERVICE, "Stdio")
            await stream.send(frames.attach_frame(*self._ids, WINDOW))
        except _BROKEN as error:
            raise _lost(error) from error
        task_status.started()
        try:
            while (payload := await stream.receive()) is not None:
                frame = frames.decode_frame(payload)
                if len(payload) - len(frame.data) > _OVERHEAD_MAX:  # which its data keeps alive
                    raise frames.FrameError("StdioFrame: more than its data in it")
                self._dispatch(frame)
        except (*_BROKEN, frames.FrameError) as error:
            self._failure = _lost(error)
        finally:
            self._ended = True
            self._stdin_changed.set()
            for outbox in self._outbox.values():
                outbox.close()
            self._detach(stream)

    async def read(self, channel: int) -> bytes | memoryview:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        try:
            piece = await self._inbox[channel].receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise GuestLost(str(self._failure)) from self._failure
            return b""
        if piece is self._joined[channel]:
            self._joined[channel] = None
        return memoryview(piece)

    async def written(self, channel: int, count: int) -> None:
        """See :class:`~shim.stdio.channel.GuestChannel`.

        Credit goes back in quarters of the window, so that small writes do not
        double the number of frames.
        """
        self._owed[channel] += count
        owed = self._owed[channel]
        if owed >= WINDOW // 4 and not self._ended:
            self._owed[channel] = 0
            self._allowed[channel] += owed
            # The guest may have sent everything and ended the stream while we still write
            # what it sent; whether anything is lost is for `read` to tell.
            with contextlib.suppress(GuestLost):
                await self._send(frames.credit_frame(channel, owed))

    async def write_stdin(self, data: bytes) -> None:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        view = memoryview(data)
        while view:
            while self._stdin_credit <= 0 or self._ended:
                if self._failure is not None:
                    raise GuestLost(str(self._failure)) from self._failure
                if self._ended:
                    raise StdinGone("stdin: the process has ended")
                self._stdin_changed = trio.Event()
                await self._stdin_changed.wait()
            size = min(len(view), self._stdin_credit, STDIN_CHUNK)
            self._stdin_credit -= size
            await self._send(frames.data_frame(STDIN, view[:size]))
            view = view[size:]

    async def close_stdin(self) -> None:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        if not self._ended:
            await self._send(frames.eof_frame(STDIN))

    def _dispatch(self, frame: frames.Frame) -> None:
        channel, size = frame.channel, len(frame.data)
        if channel == STDIN:
            self._stdin_credit += frame.credit
            self._stdin_changed.set()
            return
        outbox = self._outbox.get(channel)
        if outbox is None:
            raise frames.FrameError(f"StdioFrame: no channel {channel}")
        self._allowed[channel] -= size
        if self._allowed[channel] < 0:
            raise frames.FrameError(f"channel {channel}: more was sent than credit was given")
        if size:
            try:
                self._put(channel, frame.data)
            except trio.ClosedResourceError:
                raise frames.FrameError(f"channel {channel}: data after its end") from None
        if frame.eof:
            self._joined[channel] = None
            outbox.close()

    def _put(self, channel: int, data: memoryview) -> None:
        joined = self._joined[channel]
        if len(data) >= SMALL:
            self._joined[channel] = None
            self._outbox[channel].send_nowait(data)
        elif joined is not None and len(joined) < _JOINED_MAX:
            joined += data
        else:
            joined = self._joined[channel] = bytearray(data)
            self._outbox[channel].send_nowait(joined)

    async def _send(self, frame: bytes) -> None:
        assert self._stream is not None, "not attached"
        try:
            await self._stream.send(frame)
        except _BROKEN as error:
            # A stream that ended well just before we spoke has lost nothing.
            if not self._ended or self._failure is not None:
                raise _lost(error) from error

    def _detach(self, stream: MessageStream) -> None:
        with contextlib.suppress(*_BROKEN):  # it may be gone already
            stream.close_send()


def _lost(error: Exception) -> GuestLost:
    return GuestLost(f"stdio: the stream to the guest failed: {error}")
