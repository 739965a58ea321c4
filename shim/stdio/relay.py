"""Moves a process's bytes between the guest and the host."""

from __future__ import annotations

import logging

import trio

from shim.errors import KatapyError
from shim.stdio.guest import GuestStdio, StdinGone
from shim.stdio.host import Stdio
from shim.stdio.pipes import Sink

_log = logging.getLogger(__name__)


async def relay(stdio: Stdio, guest: GuestStdio) -> None:
    """Forward stdin and the outputs until the outputs have ended.

    Then, or when the time after the exit is over, every descriptor of ``stdio`` is
    closed and ``stdio.drained`` set. When the guest is lost or the caller cancels,
    what has arrived is written first and ``stdio`` stays open, so that another
    relay can go on with a new connection (unless the process has exited).

    Raises:
        KatapyError: the guest was lost.
    """
    failures: list[KatapyError] = []
    with stdio.relaying():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_forward_stdin, stdio, guest)
            async with trio.open_nursery() as outputs:
                for channel, sink in stdio.outputs.items():
                    outputs.start_soon(_forward_output, channel, sink, guest, failures)
            nursery.cancel_scope.cancel()
        if not failures:
            stdio.close()
    if failures:
        stdio.relay_failed()
        raise failures[0]


async def _forward_output(
    channel: int, sink: Sink, guest: GuestStdio, failures: list[KatapyError]
) -> None:
    try:
        while data := await guest.read(channel):
            await sink.write(data)
            await guest.written(channel, len(data))
    except KatapyError as error:
        failures.append(error)
    else:
        sink.close()


async def _forward_stdin(stdio: Stdio, guest: GuestStdio) -> None:
    source = stdio.stdin
    if source is None and stdio.terminal:
        return  # the end of a terminal's input would be seen as a hang-up
    try:
        while source is not None and (data := await source.read()):
            await guest.write_stdin(data)
        await guest.close_stdin()
    except StdinGone as error:
        _log.debug("%s", error)
        if source is not None:
            source.close()
    except KatapyError as error:
        # The outputs meet the same loss and report it.
        _log.debug("stdin: %s", error)
