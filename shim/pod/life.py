"""When a pod's VM started and how it ended."""

from __future__ import annotations

import time

import trio

from shim.pod.process import LOST_EXIT_STATUS, Exit


class PodLife:
    """The dates of one pod.

    Attributes:
        pid: the VMM's process id; 0 before its start.
        created_ns: the VM's start in ns since the epoch; 0 before it.
        end: how it ended; None before its end.
        ending: whether its end was asked for.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.created_ns = 0
        self.end: Exit | None = None
        self.ending = False
        self._ended = trio.Event()

    @property
    def ready(self) -> bool:
        """Whether the VM runs."""
        return self.created_ns > 0 and self.end is None

    def started(self, pid: int) -> None:
        """Note the VM's start."""
        self.pid = pid
        self.created_ns = time.time_ns()

    def ended(self) -> None:
        """Note the end: 0 when it was asked for, else what is said of a lost process."""
        if self.end is None:
            self.end = Exit(0 if self.ending else LOST_EXIT_STATUS, time.time_ns())
            self._ended.set()

    async def wait(self) -> Exit:
        """Wait for the end."""
        await self._ended.wait()
        assert self.end is not None
        return self.end
