"""The guest's console and the VMM's own messages, copied into the shim's log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from shim.log import Log
from vmm.events import ConsoleLine, Event, VmmLog
from vmm.hypervisor import Hypervisor


@asynccontextmanager
async def console_logged(hypervisor: Hypervisor, log: Log) -> AsyncIterator[None]:
    """Copy for as long as the block runs, and what was said until then.

    Args:
        hypervisor: the VM, not yet entered.
        log: gets a line for each line, with its source.
    """
    failure: BaseException | None = None
    with hypervisor.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_copy, events, log)
            try:
                yield
            except BaseException as error:
                failure = error  # raised again outside the nursery, which would wrap it
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _copy(events: AsyncIterator[Event], log: Log) -> None:
    async for event in events:
        if isinstance(event, ConsoleLine):
            log.info(event.line, source="console")
        elif isinstance(event, VmmLog):
            log.info(event.line, source="vmm")
