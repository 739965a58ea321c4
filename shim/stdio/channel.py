"""The guest's end of one process's stdio, as the relay sees it.

Our streaming extension and Kata's four calls both have this form, so the relay does
not know which agent it has.
"""

from __future__ import annotations

from typing import Protocol

import trio

from shim.errors import KatapyError, Unavailable

WINDOW = 1 << 20
"""Bytes of each output that may be on their way from the guest to the reader."""


class StdinGone(KatapyError):
    """The process reads no (more) stdin."""


class GuestLost(Unavailable):
    """The connection that carried the streams is gone."""


class GuestChannel(Protocol):
    """A process's streams.

    Every operation raises :class:`GuestLost` once the guest is lost, but ``read``
    only after everything that had arrived was handed out.
    """

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attach, report started, and carry the streams until they end or are lost.

        Ends without an error in either case; cancelling it detaches.

        Raises:
            GuestLost: before it is started, when the process can't be attached to.
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
