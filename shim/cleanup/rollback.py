"""Steps to undo, last first: the one mechanism of a failed Create and of Delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from shim.log import Log


@dataclass(frozen=True, slots=True)
class _Step:
    what: str
    undo: Callable[[], Awaitable[object]]
    timeout: float


class Rollback:
    """A stack of undo steps.

    Unwinding is shielded from cancellation and bounded: each step has its own
    deadline, and one that fails or hangs is logged and never keeps the others
    from running. What it could not undo stays in the ledger for the sweeper.

    Args:
        log: where failed steps are reported.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._steps: list[_Step] = []
        self._unwinding = trio.Lock()

    def push(
        self, what: str, undo: Callable[[], Awaitable[object]], *, timeout: float = 10.0
    ) -> None:
        """Remember a step.

        Args:
            what: the thing to undo, for the log.
            undo: undoes it.
            timeout: seconds it may take.
        """
        self._steps.append(_Step(what, undo, timeout))

    async def unwind(self) -> None:
        """Undo everything remembered, last first, and forget it.

        Who calls it while another unwinds waits for that one: what comes after, such as
        the VM's end, must find everything undone.
        """
        with trio.CancelScope(shield=True):
            async with self._unwinding:
                await self._unwind()

    async def _unwind(self) -> None:
        while self._steps:
            step = self._steps.pop()
            with trio.move_on_after(step.timeout) as scope:
                try:
                    await step.undo()
                except Exception as err:
                    self._log.warning(f"could not undo {step.what}: {err!r}")
            if scope.cancelled_caught:
                self._log.warning(f"undoing {step.what} took over {step.timeout:g} s: left")
