"""The QEMU backend: one QEMU process as one :class:`vmm.hypervisor.Hypervisor`."""

from __future__ import annotations

import logging
import signal
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from vmm import channel
from vmm.background import Background
from vmm.broadcast import Broadcast, Subscription
from vmm.errors import (
    ChannelClosed,
    Conflict,
    ControlTimeout,
    GuestTimeout,
    InvalidConfig,
    InvalidState,
    VmmError,
    VmmGone,
)
from vmm.events import (
    BalloonChanged,
    ConsoleLine,
    Event,
    Exited,
    ExitReason,
    GuestPanicked,
    GuestReset,
    GuestShutdown,
    MemoryChanged,
    StateChanged,
    VmmLog,
    VmState,
    telling_lines,
)
from vmm.process import LineTail, Process
from vmm.qemu.capabilities import NOT_SAVED, UNSAVED, capabilities
from vmm.qemu.disk_control import DiskControl
from vmm.qemu.dump import dump_memory
from vmm.qemu.exit import exit_reason
from vmm.qemu.hotplug import HotPlug, Removals
from vmm.qemu.launch import CONSOLE, DEFAULT_CACHE, QMP, launch
from vmm.qemu.plan import AGENT_PORT_ID
from vmm.qemu.qmp import QmpClient, QmpEvent, QmpProtocolError
from vmm.qemu.resize import Resizer
from vmm.qemu.snapshot import Snapshots
from vmm.spec import VsockDevice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from vmm.hypervisor import Capabilities, Recorder, Resized
    from vmm.qemu.launch import Launched
    from vmm.spec import AttachedDevice, Device, RateLimit, VmSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

_KILL_TIMEOUT = 10.0
_LAST_WORDS_TIMEOUT = 1.0
_EXIT_FOLLOWS_EOF = 2.0
_RUNNING = (VmState.RUNNING,)
_LIVE = (VmState.RUNNING, VmState.PAUSED)


class QemuHypervisor:
    """One VM run by QEMU. See :mod:`vmm.hypervisor` for what each call does.

    Args:
        spec: the VM.
        binary: QEMU program or its name; empty takes the system's own.
        cache_dir: where probe results are kept; None asks each time.
        record: told of each socket and process, for the caller's ledger.
        launched: a QEMU that :func:`vmm.qemu.launch.launch` already started for this spec.
    """

    def __init__(
        self,
        spec: VmSpec,
        *,
        binary: str | Path = "",
        cache_dir: Path | None = DEFAULT_CACHE,
        record: Recorder | None = None,
        launched: Launched | None = None,
    ) -> None:
        self.spec = spec
        self.exited = trio.Event()
        self.exit_reason: ExitReason | None = None
        self._binary = binary
        self._cache_dir = cache_dir
        self._record = record
        self._launched = launched
        self._state = VmState.NEW
        self._events: Broadcast[Event] = Broadcast()
        self._console = LineTail(lambda line: self._events.publish(ConsoleLine(line)))
        self._lifetime: AbstractAsyncContextManager[None] | None = None
        self._process: Process
        self._qmp: QmpClient
        self._background: Background
        self._capabilities: Capabilities
        self._hotplug: HotPlug
        self._disks: DiskControl
        self._resizer: Resizer
        self._snapshots: Snapshots
        self._console_done = trio.Event()
        self._events_done = trio.Event()
        self._panicked = False
        self._shutdown_cause = ""
        self._memory_is_saved = False

    # -- lifetime -------------------------------------------------------------------

    async def __aenter__(self) -> QemuHypervisor:
        self._need(VmState.NEW)
        self._lifetime = self._run()
        await self._lifetime.__aenter__()
        return self

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
        if self._launched is None:
            start = partial(
                launch,
                self.spec,
                binary=self._binary,
                cache_dir=self._cache_dir,
                record=self._record,
            )
            self._launched = await trio.to_thread.run_sync(start)
        launched = self._launched
        self._capabilities = capabilities(self.spec, launched.features, launched.accelerator)
        self._process = Process(launched.child, lambda line: self._events.publish(VmmLog(line)))
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            background = self._background = Background(nursery)
            background.start_soon(self._process.watch)
            try:
                await self._connect(launched, background)
                yield
            except BaseException as error:
                # Raised again outside the nursery, which would wrap it in a group.
                failure = error
            with trio.CancelScope(shield=True):
                await self._tear_down(launched)
            background.stop()
        self._process.close()
        if failure is not None:
            raise failure

    async def _connect(self, launched: Launched, background: Background) -> None:
        qmp_stream = await channel.connect_unix(launched.sockets[QMP])
        self._qmp = QmpClient(qmp_stream)
        background.start_soon(self._follow_events, self._qmp.subscribe())
        background.start_soon(self._read_qmp)
        if CONSOLE in launched.sockets:
            background.start_soon(
                self._read_console, await channel.connect_unix(launched.sockets[CONSOLE])
            )
        else:
            self._console_done.set()
        background.start_soon(self._await_end)
        await self._or_gone(self._qmp.negotiate, self.spec.spawn_timeout)
        removals = Removals(self._qmp, background)
        self._hotplug = HotPlug(
            self._qmp,
            launched.plan,
            removals,
            self._capabilities,
            self._events.publish,
            rootless=self.spec.user is not None,
        )
        self._disks = DiskControl(self._qmp, launched.plan, self._capabilities)
        await self._disks.limit_as_specified(self.devices.values())
        self._resizer = Resizer(
            self._qmp,
            removals,
            self.spec,
            self._capabilities,
            emulated=launched.accelerator.name == "tcg",
        )
        self._snapshots = Snapshots(self._qmp, self.spec, launched.features)
        self._set_state(VmState.SPAWNED)

    async def _tear_down(self, launched: Launched) -> None:
        self._process.signal(signal.SIGKILL)
        with trio.move_on_after(_KILL_TIMEOUT) as scope:
            await self._process.exited.wait()
            await self.exited.wait()
        if scope.cancelled_caught:
            logger.error("QEMU (pid %d) did not end after SIGKILL", self._process.pid)
        for path in launched.sockets.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)

    # -- what runs beside the caller --------------------------------------------------

    async def _read_qmp(self) -> None:
        try:
            await self._qmp.run()
        except QmpProtocolError as error:
            logger.error("QEMU broke its control protocol, ending it: %s", error)
            self._process.signal(signal.SIGKILL)

    async def _read_console(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(65536):
                    self._console.feed(data)
        self._console.finish()
        self._console_done.set()

    async def _follow_events(self, subscription: Subscription[QmpEvent]) -> None:
        with subscription:
            async for event in subscription:
                self._take_event(event)
        self._events_done.set()

    def _take_event(self, event: QmpEvent) -> None:
        match event.name:
            case "STOP":
                self._set_state(VmState.PAUSED)
            case "RESUME":
                self._set_state(VmState.RUNNING)
            case "GUEST_PANICKED":
                self._panicked = True
                self._events.publish(GuestPanicked())
                if self.spec.panic_dump is not None:
                    self._background.start_soon(self._end_after_dump, self.spec.panic_dump)
            case "SHUTDOWN":
                self._shutdown_cause = str(event.data.get("reason", ""))
                if self._shutdown_cause == "guest-reset":
                    self._events.publish(GuestReset())
                elif self._shutdown_cause == "guest-shutdown":
                    self._events.publish(GuestShutdown())
            case "MEMORY_DEVICE_SIZE_CHANGE":
                self._events.publish(MemoryChanged(int(event.data["size"])))
            case "BALLOON_CHANGE":
                self._events.publish(BalloonChanged(int(event.data["actual"])))

    async def _end_after_dump(self, directory: Path) -> None:
        # QEMU holds a panicked VM still for us, and would hold it for ever.
        await dump_memory(self._qmp, directory, self.spec.name)
        self._process.signal(signal.SIGKILL)

    async def _await_end(self) -> None:
        await self._process.exited.wait()
        with trio.move_on_after(_LAST_WORDS_TIMEOUT):
            await self._events_done.wait()
            await self._console_done.wait()
        self.exit_reason = exit_reason(
            returncode=self._process.returncode,
            shutdown_cause=self._shutdown_cause,
            panicked=self._panicked,
            stderr=self._process.tail.snapshot(),
            console=self._console.snapshot(),
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
        """Process id of QEMU."""
        return self._process.pid

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id."""
        assert self._launched is not None
        return {key: placed.handle for key, placed in self._launched.plan.placed.items()}

    def console_tail(self) -> list[str]:
        """Return the last lines of the guest's console."""
        return self._console.snapshot()

    def subscribe(self) -> Subscription[Event]:
        """Return the events from now on, ending with ``Exited``."""
        return self._events.subscribe()

    # -- running ----------------------------------------------------------------------

    async def boot(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.boot`."""
        self._need(VmState.SPAWNED)
        if self.spec.restored:
            raise InvalidState("the VM was made to be restored, not to boot")
        await self._execute("cont")
        self._set_state(VmState.RUNNING)

    async def pause(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.pause`."""
        self._need(*_RUNNING)
        await self._execute("stop")
        self._set_state(VmState.PAUSED)

    async def resume(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resume`."""
        self._need(VmState.PAUSED)
        if self._memory_is_saved:
            raise InvalidState("the memory file belongs to the snapshot now")
        await self._execute("cont")
        self._set_state(VmState.RUNNING)

    async def _execute(self, command: str, **arguments: object) -> object:
        call = partial(self._qmp.execute, command, arguments or None)
        return await self._or_gone(call)

    async def dial_agent(self, timeout: float) -> trio.SocketStream:
        """See :meth:`vmm.hypervisor.Hypervisor.dial_agent`."""
        self._need(*_RUNNING)
        dial = self._agent_dialer()

        async def with_deadline() -> trio.SocketStream:
            with trio.move_on_after(timeout):
                return await dial()
            tail = " | ".join(telling_lines(self.console_tail())) or "nothing"
            raise GuestTimeout(
                f"the guest agent did not answer within {timeout:g} s; the console says: {tail}"
            )

        return await self._or_gone(with_deadline)

    def _agent_dialer(self) -> Callable[[], Awaitable[trio.SocketStream]]:
        assert self._launched is not None
        if self.spec.channel == "serial":
            return partial(channel.dial_serial, self._launched.sockets[AGENT_PORT_ID])
        for device in self.spec.devices:
            if isinstance(device, VsockDevice):
                if device.uds is not None:
                    return partial(channel.dial_hybrid, device.uds, self.spec.agent_port)
                return partial(channel.dial_vsock, device.cid, self.spec.agent_port)
        raise InvalidConfig("channel vsock needs a VsockDevice")

    # -- changing ---------------------------------------------------------------------

    async def attach(self, device: Device, timeout: float = 10.0) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`."""
        self._need(*_LIVE)
        handle = await self._or_gone(self._hotplug.attach, device, timeout)
        await self._or_gone(self._disks.limit_as_specified, (handle,))
        return handle

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`."""
        self._need(*_RUNNING)
        await self._or_gone(self._hotplug.detach, handle, timeout)

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._need(*_LIVE)
        await self._or_gone(self._disks.resize, handle, size_bytes)

    async def set_rate_limit(self, handle: AttachedDevice, *limits: RateLimit | None) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_rate_limit`."""
        self._need(*_LIVE)
        await self._or_gone(self._disks.limit, handle, *limits)

    async def counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.counters`."""
        self._need(*_LIVE)
        return await self._or_gone(self._disks.counters)

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_vcpus`."""
        self._need(*_RUNNING)
        return await self._or_gone(self._resizer.resize_vcpus, count, timeout)

    async def resize_memory(self, size_bytes: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_memory`."""
        self._need(*_RUNNING)
        return await self._or_gone(self._resizer.resize_memory, size_bytes, timeout)

    async def set_balloon(self, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_balloon`."""
        self._need(*_RUNNING)
        self._capabilities.require("balloon", "a BalloonDevice in the spec")
        await self._execute("balloon", value=size_bytes)

    async def snapshot(self, target: Path) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.snapshot`."""
        self._need(VmState.PAUSED)
        self._capabilities.require("snapshot", NOT_SAVED)
        for handle in self.devices.values():
            if isinstance(handle.device, UNSAVED):
                raise Conflict(f"{handle.id}: a shared directory can't be saved; detach it first")
        await self._or_gone(self._snapshots.save, target)
        self._memory_is_saved = self.spec.memory_file is not None

    async def restore(self, source: Path) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.restore`."""
        self._need(VmState.SPAWNED)
        self._capabilities.require("snapshot", NOT_SAVED)
        if not self.spec.restored:
            raise InvalidState("the VM was made to boot, not to be restored")
        await self._or_gone(self._snapshots.load, source)
        self._set_state(VmState.PAUSED)

    async def vcpu_threads(self) -> dict[int, int]:
        """See :meth:`vmm.hypervisor.Hypervisor.vcpu_threads`."""
        self._need(*_LIVE)
        cpus = await self._or_gone(self._qmp.execute, "query-cpus-fast")
        return {int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in cpus}

    # -- ending -----------------------------------------------------------------------

    async def shutdown(self, grace: float) -> ExitReason:
        """See :meth:`vmm.hypervisor.Hypervisor.shutdown`."""
        if self._state is VmState.RUNNING:
            with suppress(VmmGone, ControlTimeout):
                await self._execute("system_powerdown")
            with trio.move_on_after(grace):
                await self.exited.wait()
        return await self.kill()

    async def kill(self) -> ExitReason:
        """See :meth:`vmm.hypervisor.Hypervisor.kill`."""
        if self._state is VmState.NEW:
            raise InvalidState("the VM was never started")
        self._process.signal(signal.SIGKILL)
        with trio.move_on_after(_KILL_TIMEOUT, shield=True):
            await self.exited.wait()
        if self.exit_reason is None:
            raise ControlTimeout(f"QEMU (pid {self.pid}) did not end after SIGKILL")
        return self.exit_reason
