"""Moves a process's bytes between the guest and the host."""

from __future__ import annotations

import logging
from types import TracebackType

import trio

from shim.stdio.channel import GuestChannel, GuestLost, StdinGone
from shim.stdio.pipes import Sink
from shim.stdio.stdio import Stdio

DRAIN_TIMEOUT = 30.0
"""Seconds after the exit that a reader has to take the rest of the output."""

_log = logging.getLogger(__name__)


class Relay:
    """Forwards stdin and the outputs for as long as its context lasts.

    Each output's write end is closed when the output has ended. Leaving the context
    without :meth:`finish` detaches: what ``stdio`` has open stays so, and another relay
    may go on with another channel.

    Args:
        stdio: the host's end.
        channel: the guest's end, fresh.

    Raises:
        GuestLost: on entry, when the process can't be attached to.
    """

    def __init__(self, stdio: Stdio, channel: GuestChannel) -> None:
        self._stdio = stdio
        self._channel = channel
        self._manager = trio.open_nursery()
        self._outputs_left = len(stdio.outputs)
        self._outputs_ended = trio.Event()
        self._scopes: list[trio.CancelScope] = []

    async def __aenter__(self) -> Relay:
        self._nursery = await self._manager.__aenter__()
        try:
            await self._attach()
        except BaseException as error:
            self._nursery.cancel_scope.cancel()
            await self._manager.__aexit__(None, None, None)
            if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                raise error.exceptions[0] from None  # start() wraps what run() raises
            raise
        self._nursery.start_soon(self._forward_stdin)
        for channel, sink in self._stdio.outputs.items():
            self._nursery.start_soon(self._forward_output, channel, sink)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(kind, error, trace)

    async def close_stdin(self) -> None:
        """CloseIO: end stdin once the pending bytes are forwarded. Idempotent."""
        self._stdio.close_stdin()

    def abandon(self) -> None:
        """Expect nothing more from the guest; what has arrived is still delivered."""
        self._guest_scope.cancel()

    async def finish(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """End the streams of a process that has exited.

        Waits until the guest's output has ended and is written, for ``timeout``
        seconds at most, and not at all for a FIFO that no client has open. Then every
        write end is closed.
        """
        for sink in self._stdio.outputs.values():
            sink.release()
        with trio.move_on_after(timeout) as scope:
            await self._outputs_ended.wait()
        if scope.cancelled_caught:
            _log.warning("stdio: output not taken by its reader in %g s is dropped", timeout)
        self._nursery.cancel_scope.cancel()
        self._stdio.close()

    async def _attach(self) -> None:
        self._guest_scope = trio.CancelScope()
        await self._nursery.start(self._run_channel)

    async def _run_channel(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._guest_scope:
            await self._channel.run(task_status=task_status)

    async def _forward_output(self, channel: int, sink: Sink) -> None:
        try:
            while data := await self._channel.read(channel):
                await sink.write(data)
                await self._channel.written(channel, len(data))
        except GuestLost as error:
            # Whoever waits for the process learns it as well, and decides.
            _log.debug("%s", error)
        else:
            await sink.settle()
            sink.close()
        self._outputs_left -= 1
        if not self._outputs_left:
            self._outputs_ended.set()

    async def _forward_stdin(self) -> None:
        source = self._stdio.stdin
        if source is None and self._stdio.terminal:
            return  # the end of a terminal's input would be seen as a hang-up
        try:
            while source is not None and (data := await source.read()):
                await self._channel.write_stdin(data)
            await self._channel.close_stdin()
        except StdinGone as error:
            _log.debug("%s", error)
            if source is not None:
                source.close()
        except GuestLost as error:
            _log.debug("stdin: %s", error)
