"""The guest side of one process's stdio: our streaming extension, or Kata's calls.

Both offer the same four operations, so the relay does not know which agent it has.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from shim.errors import KatapyError, Unavailable
from shim.stdio import frames
from shim.stdio.frames import STDERR, STDIN, STDOUT
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

WINDOW = 1 << 20
"""Bytes the agent may send ahead of what was written, for each output."""
READ_LENGTH = 64 << 10
"""Bytes asked for in one ReadStdout; the guest's pipes hold no more."""
STDIN_CHUNK = 256 << 10


class StdinGone(KatapyError):
    """The process reads no (more) stdin."""


class GuestStdio(Protocol):
    """A process's streams, seen from the host.

    Every operation raises :class:`~shim.errors.Unavailable` once the guest is lost,
    but only after everything that had arrived was handed out.
    """

    async def read(self, channel: int) -> bytes | memoryview:
        """Return the next output of STDOUT or STDERR; empty at its end."""

    async def written(self, channel: int, count: int) -> None:
        """Say that ``count`` bytes of ``channel`` have reached their reader."""

    async def write_stdin(self, data: bytes) -> None:
        """Hand over ``data``; waits while the process does not read.

        Raises:
            StdinGone: it never will.
        """

    async def close_stdin(self) -> None:
        """End the process's stdin."""


class FrameStream(Protocol):
    """The client side of a bidirectional ttrpc stream."""

    async def send(self, data: bytes) -> None:
        """Send one message."""

    async def receive(self) -> bytes | None:
        """Return the next message; None at the end."""


class StreamStdio:
    """Stdio over ``katapy.agent.v1.Extension/Stdio``; see :func:`open_stream_stdio`."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream
        self._inbox: dict[int, trio.MemoryReceiveChannel[memoryview]] = {}
        self._outbox: dict[int, trio.MemorySendChannel[memoryview]] = {}
        for channel in (STDOUT, STDERR):
            # Unbounded here: the credits bound it, and the pump must never block
            # one stream behind the other.
            self._outbox[channel], self._inbox[channel] = trio.open_memory_channel[memoryview](
                math.inf
            )
        self._allowed = {STDOUT: WINDOW, STDERR: WINDOW}
        self._owed = {STDOUT: 0, STDERR: 0}
        self._stdin_credit = 0
        self._credit_came = trio.Event()
        self._ended = False
        self._failure: KatapyError | None = None

    async def read(self, channel: int) -> bytes | memoryview:
        """See :class:`GuestStdio`."""
        try:
            return await self._inbox[channel].receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            return b""

    async def written(self, channel: int, count: int) -> None:
        """See :class:`GuestStdio`; credit goes back in quarters of the window."""
        self._owed[channel] += count
        owed = self._owed[channel]
        if owed >= WINDOW // 4 and not self._ended:
            self._owed[channel] = 0
            self._allowed[channel] += owed
            await self._send(frames.credit_frame(channel, owed))

    async def write_stdin(self, data: bytes) -> None:
        """See :class:`GuestStdio`."""
        view = memoryview(data)
        while view:
            while self._stdin_credit <= 0:
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    raise StdinGone("stdin: the process has ended")
                self._credit_came = trio.Event()
                await self._credit_came.wait()
            size = min(len(view), self._stdin_credit, STDIN_CHUNK)
            self._stdin_credit -= size
            await self._send(frames.data_frame(STDIN, view[:size]))
            view = view[size:]

    async def close_stdin(self) -> None:
        """See :class:`GuestStdio`."""
        if not self._ended:
            await self._send(frames.eof_frame(STDIN))

    async def pump(self) -> None:
        """Sort arriving frames until the stream ends."""
        try:
            while (payload := await self._stream.receive()) is not None:
                self._dispatch(frames.decode_frame(payload))
        except (TtrpcError, frames.FrameError, trio.BrokenResourceError) as error:
            self._failure = Unavailable(f"stdio: the stream to the guest failed: {error}")
            self._failure.__cause__ = error
        except KatapyError as error:
            self._failure = error
        finally:
            self._ended = True
            self._credit_came.set()
            for outbox in self._outbox.values():
                outbox.close()

    def _dispatch(self, frame: frames.Frame) -> None:
        channel, size = frame.channel, len(frame.data)
        if channel == STDIN:
            self._stdin_credit += frame.credit
            self._credit_came.set()
            return
        outbox = self._outbox.get(channel)
        if outbox is None:
            raise frames.FrameError(f"StdioFrame: no channel {channel}")
        self._allowed[channel] -= size
        if self._allowed[channel] < 0:
            raise frames.FrameError(f"channel {channel}: more was sent than credit was given")
        if size:
            outbox.send_nowait(frame.data)
        if frame.eof:
            outbox.close()

    async def _send(self, frame: bytes) -> None:
        try:
            await self._stream.send(frame)
        except (TtrpcError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if self._ended and self._failure is None:
                return  # the stream ended while we were about to speak
            raise Unavailable(f"stdio: the stream to the guest failed: {error}") from error


@asynccontextmanager
async def open_stream_stdio(
    stream: FrameStream, container_id: str, exec_id: str = ""
) -> AsyncIterator[StreamStdio]:
    """Attach to a process over an opened Stdio stream.

    Args:
        stream: a fresh bidirectional stream of the Stdio method.
        container_id: the process's container.
        exec_id: its exec id; empty for the container's init.
    """
    guest = StreamStdio(stream)
    await guest._send(frames.attach_frame(container_id, exec_id, WINDOW))
    lost: KatapyError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.pump)
        try:
            yield guest
        except KatapyError as error:
            lost = error  # raised outside, where the nursery does not wrap it
        finally:
            nursery.cancel_scope.cancel()
    if lost is not None:
        raise lost


class StdioCalls(Protocol):
    """The four stdio calls of Kata's AgentService."""

    async def read_stdout(self, container_id: str, exec_id: str, length: int) -> bytes:
        """Return up to ``length`` bytes; empty at the end."""

    async def read_stderr(self, container_id: str, exec_id: str, length: int) -> bytes:
        """Return up to ``length`` bytes; empty at the end."""

    async def write_stdin(self, container_id: str, exec_id: str, data: bytes) -> int:
        """Return how many bytes the process's stdin took."""

    async def close_stdin(self, container_id: str, exec_id: str) -> None:
        """Close the write end."""


_LOST = frozenset((status.UNAVAILABLE, status.CANCELLED, status.DEADLINE_EXCEEDED))


class CallStdio:
    """Stdio over ReadStdout, ReadStderr, WriteStdin and CloseStdin.

    An agent forgets a process once it was waited for, so an error about the process
    is the end of its streams; only a lost connection is a failure.
    """

    def __init__(self, calls: StdioCalls, container_id: str, exec_id: str = "") -> None:
        self._calls = calls
        self._ids = (container_id, exec_id or container_id)

    async def read(self, channel: int) -> bytes | memoryview:
        """See :class:`GuestStdio`."""
        call = self._calls.read_stdout if channel == STDOUT else self._calls.read_stderr
        try:
            return await call(*self._ids, READ_LENGTH)
        except (TtrpcError, KatapyError) as error:
            _raise_if_lost(error)
            return b""

    async def written(self, channel: int, count: int) -> None:
        """See :class:`GuestStdio`; the calls are their own flow control."""

    async def write_stdin(self, data: bytes) -> None:
        """See :class:`GuestStdio`."""
        rest = data
        while rest:
            try:
                taken = await self._calls.write_stdin(*self._ids, rest[:READ_LENGTH])
            except (TtrpcError, KatapyError) as error:
                _raise_if_lost(error)
                raise StdinGone(f"stdin: {error}") from error
            if taken <= 0:
                raise StdinGone("stdin: the agent takes no bytes")
            rest = rest[taken:]

    async def close_stdin(self) -> None:
        """See :class:`GuestStdio`."""
        try:
            await self._calls.close_stdin(*self._ids)
        except (TtrpcError, KatapyError) as error:
            _raise_if_lost(error)


def _raise_if_lost(error: TtrpcError | KatapyError) -> None:
    if error.code in _LOST:
        raise Unavailable(f"stdio: the agent is gone: {error}") from error
