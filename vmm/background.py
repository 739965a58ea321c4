"""Tasks that must run on while their owner tidies up after being cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Background:
    """Starts tasks in a nursery that only :meth:`stop` cancels.

    What cancels the nursery's owner does not reach them: whoever waits for a killed
    process to be gone still needs the tasks that see it go.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self._stopped = False

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run ``task(*args)`` in the nursery."""
        self._nursery.start_soon(self._run, task, args)

    async def _run(self, task: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        with trio.CancelScope(shield=True) as scope:
            if self._stopped:
                scope.cancel()
            self._scopes.add(scope)
            try:
                await task(*args)
            finally:
                self._scopes.discard(scope)

    def stop(self) -> None:
        """Cancel every task, those to come as well."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()
