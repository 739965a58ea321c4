"""The debug console: a shell, or a program, in the machine itself.

Only where the kernel's command line has agent.debug_console, as with Kata's agent.
Source: protos/katapy/extension.proto; pty(7), setsid(2).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .children import find_program
from .loop import Nursery
from .process import Process
from .stdio import PIPE_SIZE, Input, Output, Pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from protos.lite import Message

    from .children import Children
    from .loop import Loop
    from .rpc import Payload, Stream

SHELL = "/bin/sh"


class Console:
    """Starts what is asked for, once for each stream.

    Args:
        enabled: whether the machine was started for it.
    """

    __slots__ = ("_children", "_enabled", "_loop")

    def __init__(self, loop: Loop, children: Children, enabled: bool) -> None:
        self._loop = loop
        self._children = children
        self._enabled = enabled

    @property
    def extension(self) -> dict[str, Any]:
        """The handlers of our extension in this class."""
        return {"Console": self.open}

    async def open(self, stream: Stream) -> None:
        """Extension.Console: until the program has ended or the host lets go."""
        if not self._enabled:
            text = "this machine was started without agent.debug_console"
            raise TtrpcError(status.FAILED_PRECONDITION, text)
        first = await stream.receive()
        if first is None:
            raise TtrpcError(status.INVALID_ARGUMENT, "the first frame must say what to run")
        process = await self._start(first)
        try:
            async with Nursery(self._loop) as nursery:
                follower = nursery.spawn(process.follow())
                frames = _Frames(stream, process)
                _resize(process, first)
                await process.attach(self._loop, frames, first["credit"])  # type: ignore[arg-type]
                # It may have closed its output and go on, as long as the host stays.
                watcher = nursery.spawn(frames.until_left())
                code = await process.ended.wait()
                watcher.cancel()
                follower.cancel()
            await stream.send({"exited": True, "exit_code": code})
        finally:
            _hang_up(process)
            process.close()

    async def _start(self, first: Message) -> Process:
        argv = list(first["args"]) or [SHELL]
        try:
            if "/" not in argv[0]:
                argv[0] = find_program(argv[0])
            if first["terminal"]:
                return self._start_on_terminal(argv, first["term"])
            pipes = Pipes(PIPE_SIZE)
            try:
                stdin, stdout, stderr = pipes.child
                pid, ended = self._children.start(
                    argv, stdin=stdin, stdout=stdout, stderr=stderr, session=True
                )
                return Process(self._loop, "console", pid, ended, await pipes.streams(self._loop))
            finally:
                pipes.close()
        except OSError as error:
            raise TtrpcError(status.NOT_FOUND, f"{argv[0]}: {error.strerror or error}") from None

    def _start_on_terminal(self, argv: list[str], term: str) -> Process:
        master, slave = os.openpty()
        try:
            env = {**os.environ, "TERM": term or "linux"}
            pid, ended = self._children.start(
                argv, env=env, session=True, terminal=os.ttyname(slave)
            )
        except OSError:
            os.close(master)
            raise
        finally:
            os.close(slave)
        stdin = Input(self._loop, os.dup(master), True)
        streams = (stdin, Output(self._loop, master, True), None)
        return Process(self._loop, "console", pid, ended, streams)


def _hang_up(process: Process) -> None:
    """End what the host no longer looks after; its session is its own."""
    if process.running:
        try:
            os.killpg(process.pid, _signal.SIGKILL)
        except ProcessLookupError:
            pass


def _resize(process: Process, frame: Message) -> None:
    if frame["rows"] and process.stdin.terminal:
        try:
            process.stdin.resize(frame["rows"] & 0xFFFF, frame["columns"] & 0xFFFF)
        except OSError:
            pass  # it has ended


class _Frames:
    """The stream as a process's: what is about the terminal is taken out of it."""

    __slots__ = ("_process", "_stream")

    def __init__(self, stream: Stream, process: Process) -> None:
        self._stream = stream
        self._process = process

    async def receive(self) -> Message | None:
        while True:
            frame = await self._stream.receive()
            if frame is not None and frame["rows"]:
                _resize(self._process, frame)
            if frame is None or frame["channel"]:
                return frame

    async def until_left(self) -> None:
        """End the process when the host lets go."""
        while await self.receive() is not None:
            pass
        _hang_up(self._process)

    async def send(self, values: Mapping[str, Any]) -> None:
        await self._stream.send(values)

    async def send_encoded(self, *parts: Payload) -> None:
        await self._stream.send_encoded(*parts)
