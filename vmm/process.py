"""A running VMM or helper: its end as an event, its last words, and how to end it."""

from __future__ import annotations

import os
import signal
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_TAIL_LINES = 60
_LINE_MAX = 1024
_DRAIN_TIMEOUT = 0.5


class LineTail:
    """The last lines of a byte stream, in bounded memory.

    Args:
        on_line: called with each complete line.
    """

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self.lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._partial = b""
        self._on_line = on_line

    def feed(self, data: bytes) -> None:
        """Take bytes; a line over 1 KiB is broken up."""
        *complete, rest = (self._partial + data).split(b"\n")
        while len(rest) > _LINE_MAX:
            complete.append(rest[:_LINE_MAX])
            rest = rest[_LINE_MAX:]
        self._partial = rest
        for raw in complete:
            self._add(raw)

    def finish(self) -> None:
        """Take what follows the last line end as a line too."""
        if self._partial:
            self._add(self._partial)
            self._partial = b""

    def snapshot(self) -> list[str]:
        """Return the lines so far, with the unfinished one."""
        partial = _text(self._partial)
        return [*self.lines, partial] if partial else list(self.lines)

    def _add(self, raw: bytes) -> None:
        if line := _text(raw):
            self.lines.append(line)
            if self._on_line is not None:
                self._on_line(line)


def _text(raw: bytes) -> str:
    text = raw[:_LINE_MAX].decode(errors="replace").rstrip()
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)


class Process:
    """A child process watched by pidfd. Run :meth:`watch` in a nursery.

    Args:
        child: as started by :func:`vmm.spawn.spawn`.
        on_line: called with each line it writes.
        name: what to call it.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        on_line: Callable[[str], None] | None = None,
        name: str = "",
    ) -> None:
        assert child.stdout is not None
        self._child = child
        self._pidfd = os.pidfd_open(child.pid)
        self._returncode: int | None = None
        self._output = trio.lowlevel.FdStream(os.dup(child.stdout.fileno()))
        child.stdout.close()
        self.pid = child.pid
        self.name = name or str(child.args)
        self.tail = LineTail(on_line)
        self.exited = trio.Event()

    @property
    def returncode(self) -> int | None:
        """Exit code, or the negative signal number; None when unknown or alive."""
        return self._returncode

    async def watch(self) -> None:
        """Collect output until the process ends, reap it, then set ``exited``."""
        drained = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain, drained)
            await trio.lowlevel.wait_readable(self._pidfd)
            # Output still in the pipe is the explanation; a grandchild may hold it open.
            with trio.move_on_after(_DRAIN_TIMEOUT):
                await drained.wait()
            self._reap()
            self.exited.set()
            nursery.cancel_scope.cancel()

    def _reap(self) -> None:
        # Not Popen's own wait: it takes a status that someone else reaped for success.
        with suppress(ChildProcessError):
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if found is not None:
                ended = found.si_code == os.CLD_EXITED
                self._returncode = found.si_status if ended else -found.si_status
        self._child.returncode = self._returncode or 0

    async def _drain(self, drained: trio.Event) -> None:
        async with self._output:
            try:
                while data := await self._output.receive_some(65536):
                    self.tail.feed(data)
            except trio.BrokenResourceError:
                pass
            self.tail.finish()
            drained.set()

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens once the process is gone."""
        if not self.exited.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Release the descriptors; the process must have been watched to its end."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


async def terminate(process: Process, grace: float) -> None:
    """End a watched process: SIGTERM, then SIGKILL after ``grace`` seconds; 0 kills at once."""
    if grace > 0:
        process.signal(signal.SIGTERM)
        with trio.move_on_after(grace):
            await process.exited.wait()
    process.signal(signal.SIGKILL)
    await process.exited.wait()
