"""What all backends have in common: the life of one VMM process as a VM.

State, events, console, the race of every wait against the process's end, and the
orderly end itself. A backend adds how to start, reach and explain its VMM.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, TypeVar

import trio

from vmm.background import Background
from vmm.broadcast import Broadcast, Subscription
from vmm.errors import ChannelClosed, ControlTimeout, GuestTimeout, InvalidState, VmmError, VmmGone
from vmm.events import (
    ConsoleLine,
    Event,
    Exited,
    ExitReason,
    StateChanged,
    VmState,
    telling_lines,
)
from vmm.process import LineTail, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from vmm.hypervisor import Capabilities, Recorder
    from vmm.spec import VmSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

_KILL_TIMEOUT = 10.0
_LAST_WORDS_TIMEOUT = 1.0
_EXIT_FOLLOWS_EOF = 2.0
RUNNING = (VmState.RUNNING,)
LIVE = (VmState.RUNNING, VmState.PAUSED)


class VmProcess:
    """One VM and the process that runs it.

    Args:
        spec: the VM.
        record: told of each socket, file and process, for the caller's ledger.
    """

    program: ClassVar[str] = "the VMM"

    def __init__(self, spec: VmSpec, record: Recorder | None) -> None:
        self.spec = spec
        self.exited = trio.Event()
        self.exit_reason: ExitReason | None = None
        self._record: Recorder = record or (lambda kind, value: None)
        self._state = VmState.NEW
        self._events: Broadcast[Event] = Broadcast()
        self._console = LineTail(lambda line: self._events.publish(ConsoleLine(line)))
        self._lifetime: AbstractAsyncContextManager[None] | None = None
        self._capabilities: Capabilities
        self._process: Process
        self._background: Background

    # -- what a backend adds ------------------------------------------------------------

    async def _start(self) -> Process:
        """Check everything and start the VMM; sets ``_capabilities``."""
        raise NotImplementedError

    async def _connect(self) -> None:
        """Reach the VMM's control channel and follow what it says; it is watched."""
        raise NotImplementedError

    async def _hear_last_words(self) -> None:
        """Return when all has been read that the process, now gone, has written."""
        raise NotImplementedError

    def _explain_exit(
        self, returncode: int | None, stderr: Sequence[str], console: Sequence[str]
    ) -> ExitReason:
        raise NotImplementedError

    async def _release(self) -> None:
        """Remove what was made for the process, which is gone."""
        raise NotImplementedError

    async def own_counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.own_counters`."""
        return {}

    # -- lifetime -------------------------------------------------------------------

    async def _enter(self) -> None:
        self._need(VmState.NEW)
        self._lifetime = self._run()
        await self._lifetime.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._lifetime is not None
        await self._lifetime.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        self._process = await self._start()
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            background = self._background = Background(nursery)
            background.start_soon(self._process.watch)
            background.start_soon(self._await_end)
            try:
                await self._connect()
                self._set_state(VmState.SPAWNED)
                yield
            except BaseException as error:
                # Raised again outside the nursery, which would wrap it in a group.
                failure = error
            with trio.CancelScope(shield=True):
                await self._tear_down()
            background.stop()
        self._process.close()
        if failure is not None:
            raise failure

    async def _tear_down(self) -> None:
        self._process.signal(signal.SIGKILL)
        with trio.move_on_after(_KILL_TIMEOUT) as scope:
            await self._process.exited.wait()
            await self.exited.wait()
        if scope.cancelled_caught:
            logger.error("%s (pid %d) did not end after SIGKILL", self.program, self.pid)
        await self._release()

    async def _await_end(self) -> None:
        await self._process.exited.wait()
        with trio.move_on_after(_LAST_WORDS_TIMEOUT):
            await self._hear_last_words()
        self._console.finish()
        self.exit_reason = self._explain_exit(
            self._process.returncode, self._process.tail.snapshot(), self._console.snapshot()
        )
        self._set_state(VmState.EXITED)
        self._events.publish(Exited(self.exit_reason))
        self._events.close()
        self.exited.set()

    # -- guards -----------------------------------------------------------------------

    def _set_state(self, state: VmState) -> None:
        if state is not self._state and self._state is not VmState.EXITED:
            self._state = state
            self._events.publish(StateChanged(state))

    def _need(self, *states: VmState) -> None:
        if self._state in states:
            return
        if self._state is VmState.EXITED:
            raise VmmGone("the VM is gone", self.exit_reason)
        wanted = " or ".join(state.value for state in states)
        raise InvalidState(f"the VM is {self._state.value}, not {wanted}")

    def _need_restored(self, *, wanted: bool) -> None:
        if self.spec.restored and not wanted:
            raise InvalidState("the VM was made to be restored, not to boot")
        if wanted and not self.spec.restored:
            raise InvalidState("the VM was made to boot, not to be restored")

    async def _or_gone(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run a call; when the VM ends meanwhile, raise that with its reason instead."""
        outcome: list[T] = []
        failure: VmmError | None = None

        async def until_exit(scope: trio.CancelScope) -> None:
            await self.exited.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_exit, nursery.cancel_scope)
            try:
                outcome.append(await call(*args))
            except VmmError as error:
                failure = error
            if isinstance(failure, (VmmGone, ChannelClosed)):
                # The process ends a moment after its sockets.
                with trio.move_on_after(_EXIT_FOLLOWS_EOF):
                    await self.exited.wait()
            nursery.cancel_scope.cancel()
        if outcome:
            return outcome[0]
        if failure is None or (
            self.exited.is_set() and isinstance(failure, (VmmGone, ChannelClosed))
        ):
            raise VmmGone("the VM ended", self.exit_reason) from failure
        raise failure

    # -- what is known without asking -------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """See :attr:`vmm.hypervisor.Hypervisor.capabilities`."""
        if self._state is VmState.NEW:
            raise InvalidState("capabilities are known once the VM is spawned")
        return self._capabilities

    @property
    def state(self) -> VmState:
        """The present state."""
        return self._state

    @property
    def pid(self) -> int:
        """Process id of the VMM."""
        return self._process.pid

    def _own_threads(self) -> set[int]:
        """Host threads of the VMM, none when it is gone."""
        with suppress(OSError):
            return {int(name) for name in os.listdir(f"/proc/{self.pid}/task")}
        return set()

    def console_tail(self) -> list[str]:
        """Return the last lines of the guest's console."""
        return self._console.snapshot()

    def subscribe(self) -> Subscription[Event]:
        """Return the events from now on, ending with ``Exited``."""
        return self._events.subscribe()

    # -- the guest ----------------------------------------------------------------------

    async def _dial(
        self, dial: Callable[[], Awaitable[trio.SocketStream]], timeout: float
    ) -> trio.SocketStream:
        """Reach the agent within ``timeout`` seconds; says what the console said if not."""

        async def with_deadline() -> trio.SocketStream:
            with trio.move_on_after(timeout):
                return await dial()
            tail = " | ".join(telling_lines(self.console_tail())) or "nothing"
            raise GuestTimeout(
                f"the guest agent did not answer within {timeout:g} s; the console says: {tail}"
            )

        return await self._or_gone(with_deadline)

    # -- ending -----------------------------------------------------------------------

    async def kill(self) -> ExitReason:
        """See :meth:`vmm.hypervisor.Hypervisor.kill`."""
        if self._state is VmState.NEW:
            raise InvalidState("the VM was never started")
        self._process.signal(signal.SIGKILL)
        with trio.move_on_after(_KILL_TIMEOUT, shield=True):
            await self.exited.wait()
        if self.exit_reason is None:
            raise ControlTimeout(f"{self.program} (pid {self.pid}) did not end after SIGKILL")
        return self.exit_reason
