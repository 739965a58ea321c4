"""Moves the bytes of one ttrpc connection over a socket, under trio.

Reads and writes go straight to the non-blocking descriptor: trio's own socket
methods pass the scheduler twice per call, which costs more than the call. Output is
tried at once and only what does not fit waits for the writer task.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import trio

from shim.ttrpc.connection import ClientConnection, ConnectionClosed, ServerConnection

if TYPE_CHECKING:
    from shim.ttrpc.framing import Buffer

HIGH_WATER = 256 << 10  # unsent bytes above which senders wait
_READ_SIZE = 256 << 10
_IOV_MAX = 1024
_TURN_EVENTS = 64
_TURN_SECONDS = 0.001

# One buffer for all connections of a trio run: what is read is copied out of it
# before anything else can run.
_read_buffer: trio.lowlevel.RunVar[memoryview] = trio.lowlevel.RunVar("ttrpc read buffer")


class Transport:
    """The socket of one connection and the output that waits for it.

    Args:
        stream: a connected stream socket of any family; closed by ``close``.
        protocol: whose output is written.
    """

    def __init__(
        self, stream: trio.SocketStream, protocol: ServerConnection | ClientConnection
    ) -> None:
        self.socket = stream.socket
        self.closed = False
        self._protocol = protocol
        self._fd = self.socket.fileno()
        self._backlog: deque[Buffer] = deque()
        self._backlog_size = 0
        self._write_failed = False
        self._writer = trio.lowlevel.ParkingLot()
        self._senders = trio.lowlevel.ParkingLot()
        self._drained_input = True
        self._turn_events = 0
        self._turn_end = 0.0
        try:
            self._buffer = _read_buffer.get()
        except LookupError:
            self._buffer = memoryview(bytearray(_READ_SIZE))
            _read_buffer.set(self._buffer)

    def close(self) -> None:
        """Close the socket and wake everything that waits for it."""
        if not self.closed:
            self.closed = True
            self._fd = -1
            self._drop_backlog()
            self.socket.close()

    async def read(self) -> memoryview:
        """Give what the peer sent, empty at the end; valid until the next checkpoint."""
        try:
            while not self.closed:
                if self._drained_input:
                    await trio.lowlevel.wait_readable(self._fd)
                    self._begin_turn()
                try:
                    size = os.readv(self._fd, (self._buffer,))
                except BlockingIOError:
                    self._drained_input = True
                    continue
                self._drained_input = size < _READ_SIZE
                return self._buffer[:size]
        except (OSError, trio.ClosedResourceError):
            pass  # reset by the peer, or closed by us: the end, either way
        return self._buffer[:0]

    async def yield_if_due(self) -> None:
        """Let other tasks run after 64 events or a millisecond of one turn."""
        self._turn_events += 1
        if self._turn_events >= _TURN_EVENTS or time.perf_counter() >= self._turn_end:
            self.flush()
            await trio.lowlevel.checkpoint()
            self._begin_turn()

    def flush(self) -> None:
        """Write the protocol's output as far as the socket takes it; the rest is queued."""
        size = self._protocol.output_size
        output = self._protocol.take_output()
        if not output or self.closed or self._write_failed:
            return
        if not self._backlog:
            sent = self._write(output if len(output) <= _IOV_MAX else output[:_IOV_MAX])
            if sent == size or sent < 0:
                return
            output = _after(output, sent)
            size -= sent
            self._writer.unpark_all()
        # What a caller could change before it is written has to be copied.
        self._backlog.extend(
            chunk if type(chunk) is bytes or memoryview(chunk).readonly else bytes(chunk)
            for chunk in output
        )
        self._backlog_size += size

    async def write_loop(self) -> None:
        """Write queued output when the socket takes it; runs until the connection ends."""
        try:
            while not self.closed:
                if not self._backlog:
                    await self._writer.park()
                    continue
                await trio.lowlevel.wait_writable(self._fd)
                self._write_backlog()
        except trio.ClosedResourceError:
            pass

    async def wait_for_room(self, limit: int = HIGH_WATER) -> None:
        """Wait until at most ``limit`` bytes are unsent.

        Raises:
            ConnectionClosed: the peer takes no more.
        """
        while self._backlog_size > limit:
            await self._senders.park()
        if self.closed or self._write_failed:
            raise ConnectionClosed

    @property
    def congested(self) -> bool:
        """Whether so much is unsent that nothing more should be produced."""
        return self._backlog_size > HIGH_WATER

    def _begin_turn(self) -> None:
        self._turn_events = 0
        self._turn_end = time.perf_counter() + _TURN_SECONDS

    def _write(self, chunks: list[Buffer]) -> int:
        """Give the number of bytes written, -1 if the connection is broken."""
        try:
            return os.writev(self._fd, chunks)
        except BlockingIOError:
            return 0
        except OSError:
            # The peer may have answered before it left: let the reader find the end itself.
            self._write_failed = True
            self._drop_backlog()
            with contextlib.suppress(OSError):  # it may not be connected any more
                self.socket.shutdown(socket.SHUT_RDWR)
            return -1

    def _write_backlog(self) -> None:
        while self._backlog:
            chunks = list(islice(self._backlog, _IOV_MAX))
            sent = self._write(chunks)
            if sent <= 0:
                break
            self._backlog_size -= sent
            for _ in chunks:
                self._backlog.popleft()
            self._backlog.extendleft(reversed(_after(chunks, sent)))
        if self._backlog_size <= HIGH_WATER:
            self._senders.unpark_all()

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_size = 0
        self._senders.unpark_all()
        self._writer.unpark_all()


def _after(chunks: list[Buffer], sent: int) -> list[Buffer]:
    """Give what is left of the chunks after the first ``sent`` bytes."""
    for index, chunk in enumerate(chunks):
        if sent < len(chunk):
            return [memoryview(chunk)[sent:] if sent else chunk, *chunks[index + 1 :]]
        sent -= len(chunk)
    return []
