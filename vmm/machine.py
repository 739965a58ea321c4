"""What the backends with an HTTP API have in common: the life of one VMM process.

State, events, console, the race of every wait against the process's end, and the
orderly end itself. A backend adds how to launch, greet, command and explain its VMM.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import trio

from vmm import channel
from vmm.background import Background
from vmm.broadcast import Broadcast, Subscription
from vmm.errors import ChannelClosed, ControlTimeout, GuestTimeout, InvalidState, VmmError, VmmGone
from vmm.events import (
    ConsoleLine,
    Event,
    Exited,
    ExitReason,
    StateChanged,
    VmmLog,
    VmState,
    telling_lines,
)
from vmm.pipes import pump
from vmm.process import LineTail, Process

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from vmm.http_client import HttpClient
    from vmm.hypervisor import Capabilities, Recorder
    from vmm.spec import AttachedDevice, VmSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

_KILL_TIMEOUT = 10.0
_LAST_WORDS_TIMEOUT = 1.0
_EXIT_FOLLOWS_EOF = 2.0
_GREETING_INTERVALS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
RUNNING = (VmState.RUNNING,)
LIVE = (VmState.RUNNING, VmState.PAUSED)


@dataclass
class Launched:
    """A VMM process that was just started; its guest does not run yet.

    Args:
        child: the process.
        api: its API's socket.
        vsock: the hybrid vsock's socket; there once the guest is booted.
        capabilities: what this VM can do.
        console: our end of the pipe that the guest's console goes to, or None.
        output_is_console: the guest's console is the process's own output.
        pipes: our ends of further pipes, and what takes their bytes.
        paths: sockets and pipes to remove when the VMM is gone.
    """

    child: subprocess.Popen[bytes]
    api: Path
    vsock: Path | None
    capabilities: Capabilities
    console: int | None
    output_is_console: bool
    pipes: Sequence[tuple[int, Callable[[bytes], object]]] = ()
    paths: list[Path] = field(default_factory=list)


class Machine:
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
        self._launched: Launched
        self._process: Process
        self._api: HttpClient
        self._background: Background
        self._pipes_done: list[trio.Event] = []

    # -- what a backend adds ------------------------------------------------------------

    def _launch(self) -> Launched:
        """Check everything, then start the VMM. Blocking; runs in a thread."""
        raise NotImplementedError

    def _make_api(self, launched: Launched) -> HttpClient:
        raise NotImplementedError

    async def _greet(self) -> None:
        """Exchange a first request with the API; ChannelClosed means it is not up yet."""
        raise NotImplementedError

    def _explain_exit(
        self, returncode: int | None, stderr: Sequence[str], console: Sequence[str]
    ) -> ExitReason:
        raise NotImplementedError

    def _clean_up(self) -> None:
        """Remove what only this backend makes, once the VMM is gone. Blocking."""

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
        launched = self._launched = await trio.to_thread.run_sync(self._launch)
        on_line = self._take_output_line
        self._process = Process(launched.child, on_line, name=self.program)
        self._api = self._make_api(launched)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            background = self._background = Background(nursery)
            background.start_soon(self._process.watch)
            if launched.console is not None:
                self._start_pump(launched.console, self._console.feed)
            for fd, feed in launched.pipes:
                self._start_pump(fd, feed)
            background.start_soon(self._await_end)
            try:
                await self._or_gone(self._greet_until_answered)
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

    def _start_pump(self, fd: int, feed: Callable[[bytes], object]) -> None:
        done = trio.Event()
        self._pipes_done.append(done)

        async def run() -> None:
            await pump(fd, feed, self._process.exited)
            done.set()

        self._background.start_soon(run)

    def _take_output_line(self, line: str) -> None:
        if self._launched.output_is_console:
            self._console.feed(f"{line}\n".encode())
        else:
            self._events.publish(VmmLog(line))

    async def _greet_until_answered(self) -> None:
        rounds = 0
        with trio.move_on_after(self.spec.spawn_timeout):
            while True:
                try:
                    return await self._greet()
                except ChannelClosed:
                    interval = _GREETING_INTERVALS[min(rounds, len(_GREETING_INTERVALS) - 1)]
                    rounds += 1
                    await trio.sleep(interval)
        raise ControlTimeout(
            f"{self.program} (pid {self.pid}) does not answer on {self._launched.api} "
            f"after {self.spec.spawn_timeout:g} s"
        )

    async def _tear_down(self) -> None:
        self._process.signal(signal.SIGKILL)
        with trio.move_on_after(_KILL_TIMEOUT) as scope:
            await self._process.exited.wait()
            await self.exited.wait()
        if scope.cancelled_caught:
            logger.error("%s (pid %d) did not end after SIGKILL", self.program, self.pid)
        await self._api.aclose()
        for path in self._launched.paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        try:
            await trio.to_thread.run_sync(self._clean_up)
        except (OSError, VmmError) as error:
            logger.error("%s: not everything could be removed: %s", self.program, error)

    async def _await_end(self) -> None:
        await self._process.exited.wait()
        with trio.move_on_after(_LAST_WORDS_TIMEOUT):
            for done in self._pipes_done:
                await done.wait()
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

    async def _call(
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Any:
        call = partial(self._api.request, method, target, body, fds=fds, timeout=timeout)
        return await self._or_gone(call)

    # -- what is known without asking -------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """See :attr:`vmm.hypervisor.Hypervisor.capabilities`."""
        if self._state is VmState.NEW:
            raise InvalidState("capabilities are known once the VM is spawned")
        return self._launched.capabilities

    @property
    def state(self) -> VmState:
        """The present state."""
        return self._state

    @property
    def pid(self) -> int:
        """Process id of the VMM."""
        return self._process.pid

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id."""
        raise NotImplementedError

    def console_tail(self) -> list[str]:
        """Return the last lines of the guest's console."""
        return self._console.snapshot()

    def subscribe(self) -> Subscription[Event]:
        """Return the events from now on, ending with ``Exited``."""
        return self._events.subscribe()

    # -- the guest ----------------------------------------------------------------------

    async def dial_agent(self, timeout: float) -> trio.SocketStream:
        """See :meth:`vmm.hypervisor.Hypervisor.dial_agent`."""
        self._need(*RUNNING)
        uds = self._launched.vsock
        assert uds is not None  # every plan has the device

        async def with_deadline() -> trio.SocketStream:
            with trio.move_on_after(timeout):
                return await channel.dial_hybrid(uds, self.spec.agent_port)
            tail = " | ".join(telling_lines(self.console_tail())) or "nothing"
            raise GuestTimeout(
                f"the guest agent did not answer within {timeout:g} s; the console says: {tail}"
            )

        return await self._or_gone(with_deadline)

    def _threads(self, prefix: str) -> dict[int, int]:
        """Return the host threads of the virtual CPUs, found by the VMM's names for them."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):
                name = (task / "comm").read_text().strip()
                number = name.removeprefix(prefix).strip()
                if name.startswith(prefix) and number.isdigit():
                    found[int(number)] = int(task.name)
        return found

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


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors of a launch that failed."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
