"""The Cloud Hypervisor backend: one process as one :class:`vmm.hypervisor.Hypervisor`."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from vmm.cloud_hypervisor import launch as launching
from vmm.cloud_hypervisor import snapshot as snapshots
from vmm.cloud_hypervisor.event_codec import EventDecoder, VmmEvent
from vmm.cloud_hypervisor.hotplug import HotPlug
from vmm.cloud_hypervisor.plan import addresses, vm_config
from vmm.cloud_hypervisor.resize import Resizer
from vmm.errors import (
    ApiError,
    Conflict,
    ControlTimeout,
    InvalidConfig,
    NotFound,
    Unsupported,
    VmmGone,
)
from vmm.events import (
    PANIC_LINE,
    ExitCause,
    ExitReason,
    GuestPanicked,
    GuestReset,
    GuestShutdown,
    VmState,
)
from vmm.http_client import HttpClient
from vmm.machine import LIVE, RUNNING, Launched, Machine
from vmm.spec import NetDevice
from vmm.version import parse_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmm.cloud_hypervisor.launch import Started
    from vmm.cloud_hypervisor.plan import Landlock
    from vmm.hypervisor import Recorder, Resized
    from vmm.spec import AttachedDevice, Device, RateLimit, VmSpec

logger = logging.getLogger(__name__)

_API_TIMEOUT = 10.0
# Loads the kernel and makes the VM before it answers.
_BOOT_TIMEOUT = 30.0
_API_PREFIX = "/api/v1"


class CloudHypervisor(Machine):
    """One VM run by Cloud Hypervisor. See :mod:`vmm.hypervisor` for what each call does.

    Args:
        spec: the VM.
        binary: program or its name; empty takes ``cloud-hypervisor``.
        landlock: confine the VMM to the VM's files and these; None does not.
        record: told of each socket, file and process, for the caller's ledger.
    """

    program = "Cloud Hypervisor"

    def __init__(
        self,
        spec: VmSpec,
        *,
        binary: str | Path = "",
        landlock: Landlock | None = None,
        record: Recorder | None = None,
    ) -> None:
        super().__init__(spec, record)
        self._binary = binary
        self._landlock = landlock
        self._started: Started
        self._hotplug: HotPlug
        self._resizer: Resizer
        self._decoder = EventDecoder()
        self._cause: ExitCause | None = None

    async def __aenter__(self) -> CloudHypervisor:
        await self._enter()
        return self

    def _launch(self) -> Launched:
        started = self._started = launching.launch(
            self.spec,
            binary=self._binary,
            landlock=self._landlock is not None,
            record=self._record,
        )
        return Launched(
            child=started.child,
            api=started.api,
            vsock=started.vsock,
            capabilities=started.capabilities,
            console=None if started.console is None else started.console[1],
            output_is_console=False,
            pipes=[(started.events, self._take_event_bytes)],
            paths=started.paths,
        )

    def _make_api(self, launched: Launched) -> HttpClient:
        plan, caps, publish = self._started.plan, launched.capabilities, self._events.publish
        self._hotplug = HotPlug(self._call, plan, caps, self._landlock, publish)
        self._resizer = Resizer(self._call, plan, caps, publish)
        return HttpClient(launched.api, vmm=caps.vmm, timeout=_API_TIMEOUT, prefix=_API_PREFIX)

    async def _greet(self) -> None:
        # It listens since before the process ran: the first answer is when it is ready.
        answer = await self._api.request("GET", "/vmm.ping", timeout=self.spec.spawn_timeout)
        said = str(answer.get("version", ""))
        expected = self._started.plan.features.version
        found = parse_version(said)
        if found is None or found[:2] != expected[:2]:
            raise InvalidConfig(f"{self._binary}: was {expected} when asked, is {said} when run")

    def _explain_exit(
        self, returncode: int | None, stderr: Sequence[str], console: Sequence[str]
    ) -> ExitReason:
        return exit_reason(returncode, self._cause, stderr, console)

    # -- events -------------------------------------------------------------------------

    def _take_event_bytes(self, data: bytes) -> None:
        for event in self._decoder.feed(data):
            self._take_event(event)

    def _take_event(self, event: VmmEvent) -> None:
        match event.source, event.name:
            case "vm", "booted" | "resumed":
                self._set_state(VmState.RUNNING)
            case "vm", "paused":
                self._set_state(VmState.PAUSED)
            case "vm", "device-removed":
                self._hotplug.removed(event.properties.get("id", ""))
            case "vm", "shutdown":
                if self._cause is None:
                    self._cause = ExitCause.GUEST_SHUTDOWN
                    self._events.publish(GuestShutdown())
            case "vm", "rebooting" | "rebooted":
                # It would go on in the same process, with a guest that forgot everything.
                if self._cause is None:
                    self._cause = ExitCause.GUEST_RESET
                    self._events.publish(GuestReset())
                self._process.signal(signal.SIGKILL)
            case "guest", "panic":
                self._cause = ExitCause.GUEST_PANIC
                self._events.publish(GuestPanicked())

    # -- running ----------------------------------------------------------------------

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id; those of the boot have an address once it is done."""
        return {key: placed.handle for key, placed in self._started.plan.placed.items()}

    async def boot(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.boot`."""
        self._need(VmState.SPAWNED)
        self._need_restored(wanted=False)
        started, plan = self._started, self._started.plan
        console = None if started.console is None else started.console[0]
        config = vm_config(plan, vsock=started.vsock, console=console, landlock=self._landlock)
        await self._call("PUT", "/vm.create", config)
        for placed in list(plan.placed.values()):
            if isinstance(placed.handle.device, NetDevice) and placed.handle.device.fds:
                await self._or_gone(self._hotplug.add, placed)
        await self._call("PUT", "/vm.boot", timeout=_BOOT_TIMEOUT)
        await self._note_addresses()
        self._set_state(VmState.RUNNING)

    async def _note_addresses(self) -> None:
        found = addresses(await self._call("GET", "/vm.info"))
        plan = self._started.plan
        for placed in list(plan.placed.values()):
            if bdf := found.get(placed.name):
                plan.put_at(placed, bdf)

    async def pause(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.pause`."""
        self._need(*RUNNING)
        await self._call("PUT", "/vm.pause")
        self._set_state(VmState.PAUSED)

    async def resume(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resume`."""
        self._need(VmState.PAUSED)
        await self._call("PUT", "/vm.resume")
        self._set_state(VmState.RUNNING)

    # -- changing ---------------------------------------------------------------------

    async def attach(self, device: Device, timeout: float = 10.0) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`."""
        self._need(*LIVE)
        return await self._or_gone(self._hotplug.attach, device, timeout)

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`."""
        self._need(*RUNNING)
        await self._or_gone(self._hotplug.detach, handle, timeout)

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._need(*LIVE)
        await self._or_gone(self._hotplug.resize_block, handle, size_bytes)

    async def set_rate_limit(self, handle: AttachedDevice, *limits: RateLimit | None) -> None:
        """Never possible: Cloud Hypervisor's limits are fixed when a device is made."""
        self._need(*LIVE)
        detail = f"of {handle.id}: fixed when it was attached, not {limits} later"
        raise Unsupported("rate_limit", detail, self.capabilities.vmm)

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
        self.capabilities.require("balloon")
        if not 0 < size_bytes <= self.spec.memory_bytes:
            raise InvalidConfig(f"the guest can keep 1 to {self.spec.memory_bytes} bytes")
        taken = self.spec.memory_bytes - size_bytes
        await self._call("PUT", "/vm.resize", {"desired_balloon": taken})

    async def counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.counters`."""
        self._need(*LIVE)
        found = await self._call("GET", "/vm.counters")
        names = {placed.name: key for key, placed in self._started.plan.placed.items()}
        return {names.get(name, name): dict(values) for name, values in found.items()}

    async def vcpu_threads(self) -> dict[int, int]:
        """See :meth:`vmm.hypervisor.Hypervisor.vcpu_threads`."""
        self._need(*LIVE)
        return self._threads("vcpu")

    # -- saving -------------------------------------------------------------------------

    async def snapshot(self, target: Path) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.snapshot`."""
        self._need(VmState.PAUSED)
        self.capabilities.require("snapshot")
        await snapshots.create(self._call, target)

    async def restore(self, source: Path) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.restore`.

        Sockets, console and network cards are those of this VM's spec; disks must be where
        they were. The guest's connections are gone.
        """
        self._need(VmState.SPAWNED)
        self.capabilities.require("snapshot")
        self._need_restored(wanted=True)
        started = self._started
        console = None if started.console is None else started.console[0]
        links = self.spec.runtime_dir / snapshots.LINKS
        await snapshots.load(self._call, source, links, started.plan, started.vsock, console)
        await self._note_addresses()
        self._set_state(VmState.PAUSED)

    # -- ending -----------------------------------------------------------------------

    async def shutdown(self, grace: float) -> ExitReason:
        """See :meth:`vmm.hypervisor.Hypervisor.shutdown`."""
        if self._state is VmState.RUNNING and grace > 0:
            with suppress(VmmGone, ControlTimeout, ApiError, NotFound, Conflict):
                await self._call("PUT", "/vm.power-button")
            with trio.move_on_after(grace):
                await self.exited.wait()
        return await self.kill()


def exit_reason(
    returncode: int | None,
    cause: ExitCause | None,
    stderr: Sequence[str],
    console: Sequence[str],
) -> ExitReason:
    """Return why a Cloud Hypervisor process ended. Pure.

    Args:
        returncode: exit code, negative signal number, or None when it is unknown.
        cause: what its events said.
        stderr: last lines it wrote.
        console: last lines of the guest's console.
    """
    killed = returncode is not None and returncode < 0
    if cause is ExitCause.GUEST_RESET and any(PANIC_LINE in line for line in console):
        cause = ExitCause.GUEST_PANIC
    if cause is None:
        if returncode is None:
            cause = ExitCause.UNKNOWN
        elif killed:
            cause = ExitCause.HOST_SIGNAL
        else:
            # It takes SIGTERM for an order and ends with 0.
            cause = ExitCause.VMM_ERROR if returncode else ExitCause.HOST_QUIT
    return ExitReason(
        cause,
        code=None if killed else returncode,
        signal=-returncode if killed and returncode is not None else None,
        stderr=tuple(stderr),
        console=tuple(console),
    )
