"""The QEMU backend: one QEMU process as one :class:`vmm.hypervisor.Hypervisor`."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from vmm import channel
from vmm.broadcast import Subscription
from vmm.errors import (
    Conflict,
    ControlTimeout,
    InvalidConfig,
    InvalidState,
    VmmGone,
)
from vmm.events import (
    BalloonChanged,
    ExitReason,
    GuestPanicked,
    GuestReset,
    GuestShutdown,
    MemoryChanged,
    VmmLog,
    VmState,
)
from vmm.process import Process
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
from vmm.vm_process import LIVE, RUNNING, VmProcess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from vmm.hypervisor import Recorder, Resized
    from vmm.qemu.launch import Launched
    from vmm.spec import AttachedDevice, Device, RateLimit, VmSpec

logger = logging.getLogger(__name__)


class QemuHypervisor(VmProcess):
    """One VM run by QEMU. See :mod:`vmm.hypervisor` for what each call does.

    Args:
        spec: the VM.
        binary: QEMU program or its name; empty takes the system's own.
        cache_dir: where probe results are kept; None asks each time.
        record: told of each socket and process, for the caller's ledger.
        launched: a QEMU that :func:`vmm.qemu.launch.launch` already started for this spec.
    """

    program = "QEMU"

    def __init__(
        self,
        spec: VmSpec,
        *,
        binary: str | Path = "",
        cache_dir: Path | None = DEFAULT_CACHE,
        record: Recorder | None = None,
        launched: Launched | None = None,
    ) -> None:
        super().__init__(spec, record)
        self._binary = binary
        self._cache_dir = cache_dir
        self._launched = launched
        self._qmp: QmpClient
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
        await self._enter()
        return self

    async def _start(self) -> Process:
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
        return Process(
            launched.child, lambda line: self._events.publish(VmmLog(line)), name=self.program
        )

    async def _connect(self) -> None:
        launched, background = self._launched, self._background
        assert launched is not None
        qmp_stream = await self._or_gone(channel.connect_unix, launched.sockets[QMP])
        self._qmp = QmpClient(qmp_stream)
        background.start_soon(self._follow_events, self._qmp.subscribe())
        background.start_soon(self._read_qmp)
        if CONSOLE in launched.sockets:
            console = await self._or_gone(channel.connect_unix, launched.sockets[CONSOLE])
            background.start_soon(self._read_console, console)
        else:
            self._console_done.set()
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

    async def _release(self) -> None:
        assert self._launched is not None
        for path in self._launched.sockets.values():
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

    async def _hear_last_words(self) -> None:
        await self._events_done.wait()
        await self._console_done.wait()

    def _explain_exit(
        self, returncode: int | None, stderr: Sequence[str], console: Sequence[str]
    ) -> ExitReason:
        return exit_reason(
            returncode=returncode,
            shutdown_cause=self._shutdown_cause,
            panicked=self._panicked,
            stderr=stderr,
            console=console,
        )

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id."""
        assert self._launched is not None
        return {key: placed.handle for key, placed in self._launched.plan.placed.items()}

    # -- running ----------------------------------------------------------------------

    async def boot(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.boot`."""
        self._need(VmState.SPAWNED)
        self._need_restored(wanted=False)
        await self._execute("cont")
        self._set_state(VmState.RUNNING)

    async def pause(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.pause`."""
        self._need(*RUNNING)
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
        self._need(*RUNNING)
        return await self._dial(self._agent_dialer(), timeout)

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

    @property
    def agent_url(self) -> str:
        """See :meth:`vmm.hypervisor.Hypervisor.agent_url`."""
        assert self._launched is not None
        for device in self.spec.devices if self.spec.channel == "vsock" else ():
            if isinstance(device, VsockDevice):
                if device.uds is not None:
                    return f"hvsock://{device.uds}:{self.spec.agent_port}"
                return f"vsock://{device.cid}:{self.spec.agent_port}"
        return f"unix://{self._launched.sockets[AGENT_PORT_ID]}"

    # -- changing ---------------------------------------------------------------------

    async def attach(self, device: Device, timeout: float = 10.0) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`."""
        self._need(*LIVE)
        handle = await self._or_gone(self._hotplug.attach, device, timeout)
        await self._or_gone(self._disks.limit_as_specified, (handle,))
        return handle

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`."""
        self._need(*RUNNING)
        await self._or_gone(self._hotplug.detach, handle, timeout)

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._need(*LIVE)
        await self._or_gone(self._disks.resize, handle, size_bytes)

    async def set_rate_limit(self, handle: AttachedDevice, *limits: RateLimit | None) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_rate_limit`."""
        self._need(*LIVE)
        await self._or_gone(self._disks.limit, handle, *limits)

    async def counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.counters`."""
        self._need(*LIVE)
        return await self._or_gone(self._disks.counters)

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_vcpus`."""
        self._need(*RUNNING)
        return await self._or_gone(self._resizer.resize_vcpus, count, timeout)

    async def resize_memory(self, size_bytes: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_memory`."""
        self._need(*RUNNING)
        return await self._or_gone(self._resizer.resize_memory, size_bytes, timeout)

    async def set_balloon(self, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_balloon`."""
        self._need(*RUNNING)
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
        self._need_restored(wanted=True)
        await self._or_gone(self._snapshots.load, source)
        self._set_state(VmState.PAUSED)

    async def vcpu_threads(self) -> dict[int, int]:
        """See :meth:`vmm.hypervisor.Hypervisor.vcpu_threads`."""
        self._need(*LIVE)
        cpus = await self._or_gone(self._qmp.execute, "query-cpus-fast")
        told = {int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in cpus}
        # Whoever asks moves and pins them, so a QEMU taken over by its guest names no others.
        own = self._own_threads()
        return {index: thread for index, thread in told.items() if thread in own}

    # -- ending -----------------------------------------------------------------------

    async def shutdown(self, grace: float) -> ExitReason:
        """See :meth:`vmm.hypervisor.Hypervisor.shutdown`."""
        if self._state is VmState.RUNNING:
            with suppress(VmmGone, ControlTimeout):
                await self._execute("system_powerdown")
            with trio.move_on_after(grace):
                await self.exited.wait()
        return await self.kill()
