"""A process of a container, and the stream that carries its standard streams."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from protos.lite import encode_varint
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .loop import Event, Nursery
from .stdio import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .children import Exit
    from .loop import Loop, Task
    from .rpc import Payload, Stream
    from .stdio import Input, Output

STDIN = 1
STDOUT = 2
STDERR = 3
DEFAULT_WINDOW = 1 << 20
STDIN_WINDOW = 1 << 20


class Process:
    """A started process: its pid, its end and its standard streams."""

    __slots__ = (
        "_attached",
        "_detached",
        "ended",
        "name",
        "pid",
        "stderr",
        "stdin",
        "stdout",
        "waited",
    )

    def __init__(
        self,
        loop: Loop,
        name: str,
        pid: int,
        ended: Exit,
        streams: tuple[Input, Output, Output | None],
    ) -> None:
        self.name = name
        self.pid = pid
        self.ended = ended
        self.stdin, self.stdout, self.stderr = streams
        self.waited = False
        self._attached: Task | None = None
        self._detached = Event(loop)

    async def follow(self) -> None:
        """Wait for the exit and begin the end of the streams. Run it as a task."""
        await self.ended.wait()
        self.stdin.close()
        for output in self.outputs:
            output.process_exited()

    @property
    def outputs(self) -> list[Output]:
        """Standard output and, without a terminal, standard error."""
        return [self.stdout] if self.stderr is None else [self.stdout, self.stderr]

    @property
    def attached(self) -> bool:
        """Whether a stream carries the standard streams now."""
        return self._attached is not None

    @property
    def taken(self) -> int:
        """Bytes of output that were read or sent."""
        return sum(output.taken for output in self.outputs)

    @property
    def running(self) -> bool:
        """Whether the process has not exited."""
        return self.ended.code is None

    def signal(self, number: int) -> None:
        """Send a signal.

        Raises:
            TtrpcError: NOT_FOUND when the process is gone; INVALID_ARGUMENT for a bad number.
        """
        if not 0 <= number <= 64:
            raise TtrpcError(status.INVALID_ARGUMENT, f"{number} is not a signal")
        if not self.running:
            raise TtrpcError(status.NOT_FOUND, "ESRCH: No such process")
        # The pid can't have been reused: only this program reaps it, and hasn't.
        os.kill(self.pid, number)

    def handles(self, number: int) -> bool:
        """Whether the process blocks, ignores or catches a signal."""
        mask = 0
        with open(f"/proc/{self.pid}/status") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key in ("SigBlk", "SigIgn", "SigCgt"):
                    mask |= int(value, 16)
        return bool(mask >> (number - 1) & 1)

    def terminate(self) -> None:
        """Send SIGTERM, or SIGKILL to an init for which the kernel would drop it."""
        handled = not self.running or self.handles(_signal.SIGTERM)
        self.signal(_signal.SIGTERM if handled else _signal.SIGKILL)

    async def attach(self, loop: Loop, stream: Stream, window: int) -> None:
        """Carry the standard streams over a stream until both outputs have ended.

        A second attachment takes the place of the first.

        Raises:
            ConnectionLost: the peer is gone; nothing that was not sent is lost.
        """
        while self._attached is not None:  # it may have output to put back: wait for its end
            self._attached.cancel()
            await self._detached.wait()
        self._attached = loop.current
        attachment = _Attachment(loop, self, stream, window or DEFAULT_WINDOW)
        try:
            await attachment.run()
        finally:
            self._attached = None
            self._detached.pulse()

    def close(self) -> None:
        """Close all streams."""
        self.stdin.close()
        for output in self.outputs:
            output.close()


class _Attachment:
    """One Stdio stream and the process it is attached to."""

    __slots__ = ("_credit", "_loop", "_more", "_process", "_stdin", "_stdin_more", "_stream")

    def __init__(self, loop: Loop, process: Process, stream: Stream, window: int) -> None:
        self._loop = loop
        self._process = process
        self._stream = stream
        self._credit = {STDOUT: window, STDERR: window}
        self._more = {STDOUT: Event(loop), STDERR: Event(loop)}
        self._stdin: list[bytes | None] = []
        self._stdin_more = Event(loop)

    async def run(self) -> None:
        process = self._process
        await self._stream.send({"channel": STDIN, "credit": STDIN_WINDOW})
        async with Nursery(self._loop) as helpers:
            async with Nursery(self._loop) as outputs:
                reader = helpers.spawn(self._receive(outputs))
                writer = helpers.spawn(self._feed())
                outputs.spawn(self._pump(STDOUT, process.stdout))
                if process.stderr is not None:
                    outputs.spawn(self._pump(STDERR, process.stderr))
            reader.cancel()
            writer.cancel()

    async def _receive(self, outputs: Nursery) -> None:
        while True:
            frame = await self._stream.receive()
            if frame is None:  # the host has let go, so no more credit comes
                outputs.cancel()
                return
            channel = frame["channel"]
            if channel == STDIN:
                if frame["data"]:
                    self._stdin.append(frame["data"])
                if frame["eof"]:
                    self._stdin.append(None)
                self._stdin_more.pulse()
            elif channel in self._credit:
                self._credit[channel] += frame["credit"]
                self._more[channel].pulse()

    async def _feed(self) -> None:
        stdin = self._process.stdin
        while True:
            while not self._stdin:
                await self._stdin_more.wait()
            data = self._stdin.pop(0)
            if data is None:
                await stdin.finish()
                continue
            try:
                await stdin.write(data)
            except BrokenPipeError:
                pass  # a process that doesn't read must not hold the sender up
            await self._stream.send({"channel": STDIN, "credit": len(data)})

    async def _pump(self, channel: int, output: Output) -> None:
        async def send(data: Payload) -> None:
            head = bytes((0x18, channel, 0x22)) + encode_varint(len(data))
            await self._stream.send_encoded(head, data)

        while True:
            while self._credit[channel] <= 0:
                await self._more[channel].wait()
            sent = await output.forward(min(self._credit[channel], CHUNK), send)
            if not sent:
                await self._stream.send({"channel": channel, "eof": True})
                return
            self._credit[channel] -= sent
