"""``katapy exec``: a shell, or a command, in a pod's guest, beside its containers.

As ``kata-runtime exec`` and ``kata-ctl exec``: for pods with ``debug_console_enabled``.
"""

from __future__ import annotations

import argparse
import os
import signal
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio
from google.protobuf.message import DecodeError

from protos.katapy.extension_pb2 import ConsoleFrame
from shim.cli.running import socket_of
from shim.errors import Unavailable
from shim.stdio.frames import STDERR, STDIN, STDOUT
from shim.ttrpc import status
from shim.ttrpc.client import ConnectionClosed, open_client
from shim.ttrpc.status import TtrpcError
from shim.ttrpc.stream import ClientStream

WINDOW = 256 << 10
CHUNK = 32 << 10
_LOST = 255
_OUTPUTS = {STDOUT: 1, STDERR: 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sandbox", metavar="SANDBOX", help="the pod's id")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="the program and its arguments (default: a shell)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run it and return its exit status, or raise a KatapyError."""
    words = arguments.command
    words = words[1:] if words[:1] == ["--"] else words
    address = socket_of(arguments.sandbox)
    terminal = os.isatty(0) and os.isatty(1)
    with _raw(terminal):
        try:
            outcome = trio.run(_attach, address, words, terminal)
        except OSError as error:
            raise Unavailable(
                f"sandbox {arguments.sandbox}: its shim at {address!r} does not answer: {error}"
            ) from error
    if isinstance(outcome, Exception):
        text = outcome.message if isinstance(outcome, TtrpcError) else "its shim is gone"
        raise Unavailable(f"sandbox {arguments.sandbox}: {text}")
    return outcome


@contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Have the terminal pass every key on; what it was before comes back at the end."""
    if not terminal:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)


async def _attach(address: str, words: list[str], terminal: bool) -> int | Exception:
    async with open_client(await trio.open_unix_socket(address)) as client:
        stream = client.stream("katapy.shim.v1.Console", "Open")
        try:
            return await _Session(stream, terminal).run(words)
        except (TtrpcError, ConnectionClosed) as error:
            return error  # raised where no nursery makes a group of it


class _Session:
    """Our standard streams and the guest's, with credits both ways."""

    def __init__(self, stream: ClientStream, terminal: bool) -> None:
        self._stream = stream
        self._terminal = terminal
        self._credit = 0
        self._more = trio.Event()

    async def run(self, words: list[str]) -> int:
        rows, columns = self._size()
        await self._send(
            ConsoleFrame(
                args=words,
                terminal=self._terminal,
                term=os.environ.get("TERM", ""),
                rows=rows,
                columns=columns,
                credit=WINDOW,
            )
        )
        failure: Exception | None = None
        code = _LOST
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guarded, self._feed)
            if self._terminal:
                nursery.start_soon(self._guarded, self._follow_size)
            try:
                code = await self._print()
            except (TtrpcError, ConnectionClosed) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return code

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        with suppress(TtrpcError, ConnectionClosed):  # the printing side tells why
            await work()

    async def _print(self) -> int:
        """Write what comes, until the program has ended; return how."""
        while (data := await self._stream.receive()) is not None:
            try:
                frame = ConsoleFrame.FromString(data)
            except DecodeError as error:
                raise TtrpcError(status.INTERNAL, f"the guest talks nonsense: {error}") from None
            if frame.exited:
                return frame.exit_code & 0xFF
            if frame.channel == STDIN:
                self._credit += frame.credit
                self._more.set()
            elif frame.data and frame.channel in _OUTPUTS:
                await trio.to_thread.run_sync(_write_all, _OUTPUTS[frame.channel], frame.data)
                with suppress(TtrpcError):  # the guest may have ended the stream meanwhile
                    await self._send(ConsoleFrame(channel=frame.channel, credit=len(frame.data)))
        return _LOST

    async def _feed(self) -> None:
        while True:
            while self._credit <= 0:
                self._more = trio.Event()
                await self._more.wait()
            # In a thread: a terminal that does not block would not for others who have it.
            data = await trio.to_thread.run_sync(
                os.read, 0, min(CHUNK, self._credit), abandon_on_cancel=True
            )
            if not data:
                await self._send(ConsoleFrame(channel=STDIN, eof=True))
                return
            self._credit -= len(data)
            await self._send(ConsoleFrame(channel=STDIN, data=data))

    async def _follow_size(self) -> None:
        with trio.open_signal_receiver(signal.SIGWINCH) as signals:
            async for _ in signals:
                rows, columns = self._size()
                await self._send(ConsoleFrame(rows=rows, columns=columns))

    def _size(self) -> tuple[int, int]:
        if not self._terminal:
            return 0, 0
        size = os.get_terminal_size(1)
        return size.lines, size.columns

    async def _send(self, frame: ConsoleFrame) -> None:
        await self._stream.send(frame.SerializeToString())


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
