"""The Firecracker backend: one process as one :class:`vmm.hypervisor.Hypervisor`."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from vmm.errors import ApiError, ControlTimeout, InvalidConfig, Unsupported, VmmGone
from vmm.events import PANIC_LINE, ExitCause, ExitReason, VmmLog, VmState
from vmm.firecracker import launch as launching
from vmm.firecracker import snapshot as snapshots
from vmm.firecracker.hotplug import HotPlug
from vmm.firecracker.metrics import Counters
from vmm.firecracker.plan import boot_requests
from vmm.firecracker.resize import resize_memory
from vmm.http_client import HttpClient
from vmm.machine import LIVE, RUNNING, Launched, Machine
from vmm.process import LineTail
from vmm.spec import MIB
from vmm.version import parse_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmm.firecracker.jail import Jailer
    from vmm.firecracker.launch import Started
    from vmm.hypervisor import Recorder, Resized
    from vmm.spec import AttachedDevice, Device, RateLimit, VmSpec

_API_TIMEOUT = 10.0
# Loads the kernel and makes the VM before it answers.
_BOOT_TIMEOUT = 30.0
_METRICS_TIMEOUT = 2.0


class FirecrackerHypervisor(Machine):
    """One VM run by Firecracker. See :mod:`vmm.hypervisor` for what each call does.

    Args:
        spec: the VM.
        binary: Firecracker program or its name; empty takes ``firecracker``.
        pci: start it with PCI, which from 1.16 on (as a preview) can hot-plug disks,
            cards and pmem; without, disks are hot-plugged by placeholders.
        jailer: run it as a user of its own in a directory of its own; None does not.
        record: told of each socket, file and process, for the caller's ledger; with a
            jailer also of a directory (``tree``) and mounts (``mount``).
    """

    program = "Firecracker"

    def __init__(
        self,
        spec: VmSpec,
        *,
        binary: str | Path = "",
        pci: bool = False,
        jailer: Jailer | None = None,
        record: Recorder | None = None,
    ) -> None:
        super().__init__(spec, record)
        self._jailer = jailer
        self._binary = binary
        self._pci = pci
        self._started: Started
        self._hotplug: HotPlug
        self._log = LineTail(lambda line: self._events.publish(VmmLog(line)))
        self._counters = Counters()
        self._flushed = trio.Event()
        # Until 1.17 the guest's sockets take no new connection after a pause that no
        # snapshot was made in.
        self._paused_plainly = False
        self._deaf = False

    async def __aenter__(self) -> FirecrackerHypervisor:
        await self._enter()
        return self

    def _launch(self) -> Launched:
        started = self._started = launching.launch(
            self.spec,
            binary=self._binary,
            pci=self._pci,
            jailer=self._jailer,
            record=self._record,
        )
        pipes = [(started.metrics, self._take_metrics)]
        if started.log is not None:
            pipes.append((started.log, self._log.feed))
        return Launched(
            child=started.child,
            api=started.api,
            vsock=started.vsock,
            capabilities=started.capabilities,
            console=started.console,
            output_is_console=started.log is not None,
            pipes=pipes,
            paths=started.paths,
        )

    def _take_metrics(self, data: bytes) -> None:
        if self._counters.feed(data):
            self._flushed.set()
            self._flushed = trio.Event()

    def _make_api(self, launched: Launched) -> HttpClient:
        self._hotplug = HotPlug(
            self._call,
            self._started.plan,
            launched.capabilities,
            self._started.jail,
            self._started.inside.placeholder,
            self._events.publish,
        )
        return HttpClient(launched.api, vmm=launched.capabilities.vmm, timeout=_API_TIMEOUT)

    async def _greet(self) -> None:
        answer = await self._api.request("GET", "/version")
        said = str(answer.get("firecracker_version", ""))
        expected = self._started.plan.features.version
        if parse_version(said) != expected:
            raise InvalidConfig(f"{self._binary}: was {expected} when asked, is {said} when run")

    def _explain_exit(
        self, returncode: int | None, stderr: Sequence[str], console: Sequence[str]
    ) -> ExitReason:
        return exit_reason(returncode, [*stderr, *self._log.snapshot()], console)

    def _clean_up(self) -> None:
        if self._started.jail is not None:
            self._started.jail.remove()

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id."""
        return {key: placed.handle for key, placed in self._started.plan.placed.items()}

    # -- running ----------------------------------------------------------------------

    async def boot(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.boot`."""
        self._need(VmState.SPAWNED)
        self._need_restored(wanted=False)
        started = self._started
        for method, target, body in boot_requests(self.spec, started.plan, started.inside):
            await self._call(method, target, body)
        await self._action("InstanceStart", timeout=_BOOT_TIMEOUT)
        self._set_state(VmState.RUNNING)

    async def _action(self, name: str, timeout: float = _API_TIMEOUT) -> None:
        await self._call("PUT", "/actions", {"action_type": name}, timeout=timeout)

    async def pause(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.pause`."""
        self._need(*RUNNING)
        await self._call("PATCH", "/vm", {"state": "Paused"})
        self._paused_plainly = True
        self._set_state(VmState.PAUSED)

    async def resume(self) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resume`."""
        self._need(VmState.PAUSED)
        await self._call("PATCH", "/vm", {"state": "Resumed"})
        if self._paused_plainly and not self._started.plan.features.has("vsock_after_resume"):
            self._deaf = True
        self._paused_plainly = False
        self._set_state(VmState.RUNNING)

    async def dial_agent(self, timeout: float) -> trio.SocketStream:
        """See :meth:`vmm.hypervisor.Hypervisor.dial_agent`."""
        self._need(*RUNNING)
        features = self._started.plan.features
        if self._deaf:
            # It would hang for ever; connections from before the pause go on.
            detail = f"new connections after a resume need {features.since('vsock_after_resume')}"
            raise Unsupported("vsock", detail, features.vmm)
        return await super().dial_agent(timeout)

    # -- changing ---------------------------------------------------------------------

    async def attach(self, device: Device, timeout: float = 10.0) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`.

        With PCI the guest must look for the device (``guest_rescan_needed``).
        """
        self._need(*LIVE)
        return await self._or_gone(self._hotplug.attach, device, timeout)

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`.

        With PCI the guest must have let go of the device before
        (``guest_remove_first``); a placeholder must no longer be mounted.
        """
        self._need(*RUNNING)
        await self._or_gone(self._hotplug.detach, handle, timeout)

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._need(*LIVE)
        await self._or_gone(self._hotplug.resize_block, handle, size_bytes)

    async def set_rate_limit(self, handle: AttachedDevice, *limits: RateLimit | None) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_rate_limit`."""
        self._need(*LIVE)
        await self._or_gone(self._hotplug.set_rate_limit, handle, limits)

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        """Never possible: Firecracker's virtual CPUs are fixed at boot."""
        self._need(*RUNNING)
        self.capabilities.require("vcpu_up")
        raise AssertionError(f"claimed but not made: {count} CPUs in {timeout:g} s")

    async def resize_memory(self, size_bytes: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_memory`."""
        self._need(*RUNNING)
        self.capabilities.require("mem_up")
        hot = self._started.plan.hot_memory_bytes
        return await resize_memory(
            self._call, self.spec, hot, size_bytes, timeout, self._events.publish
        )

    async def set_balloon(self, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_balloon`."""
        self._need(*RUNNING)
        self.capabilities.require("balloon")
        if not 0 < size_bytes <= self.spec.memory_bytes:
            raise InvalidConfig(f"the guest can keep 1 to {self.spec.memory_bytes} bytes")
        taken = (self.spec.memory_bytes - size_bytes) // MIB
        await self._call("PATCH", "/balloon", {"amount_mib": taken})

    async def counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.counters`."""
        await self._flush_metrics()
        names = {p.name: key for key, p in self._started.plan.placed.items()}
        return {_device_of(group, names): v for group, v in self._counters.of_devices.items()}

    async def own_counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.own_counters`."""
        await self._flush_metrics()
        return self._counters.of_kinds

    async def _flush_metrics(self) -> None:
        self._need(*LIVE)
        flushed = self._flushed
        await self._action("FlushMetrics")
        with trio.move_on_after(_METRICS_TIMEOUT):
            await flushed.wait()

    async def vcpu_threads(self) -> dict[int, int]:
        """See :meth:`vmm.hypervisor.Hypervisor.vcpu_threads`."""
        self._need(*LIVE)
        return self._threads("fc_vcpu")

    # -- saving -------------------------------------------------------------------------

    async def snapshot(self, target: Path) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.snapshot`."""
        self._need(VmState.PAUSED)
        self.capabilities.require("snapshot")
        started = self._started
        if started.jail is not None:
            bring_in = partial(started.jail.bring_in, target, read_only=False)
            await trio.to_thread.run_sync(bring_in)
        await snapshots.create(self._call, target, started.plan, started.inside.vsock)
        self._paused_plainly = False

    async def restore(self, source: Path) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.restore`.

        Taps and, from 1.16 on, the vsock socket are those of this VM's spec; disks must
        be where they were. The guest's connections are gone.
        """
        self._need(VmState.SPAWNED)
        self.capabilities.require("snapshot")
        self._need_restored(wanted=True)
        started = self._started
        if started.jail is not None:
            bring_in = partial(started.jail.bring_in, source, read_only=True)
            await trio.to_thread.run_sync(bring_in)
        await snapshots.load(self._call, source, started.plan, started.inside)
        self._set_state(VmState.PAUSED)

    # -- ending -----------------------------------------------------------------------

    async def shutdown(self, grace: float) -> ExitReason:
        """See :meth:`vmm.hypervisor.Hypervisor.shutdown`.

        The only request there is is Ctrl+Alt+Del, which the guest may take as one to
        reboot, and a reboot ends the VM.
        """
        if self._state is VmState.RUNNING and platform.machine() == "x86_64" and grace > 0:
            with suppress(VmmGone, ControlTimeout, ApiError):
                await self._action("SendCtrlAltDel")
            with trio.move_on_after(grace):
                await self.exited.wait()
        return await self.kill()


def exit_reason(
    returncode: int | None, stderr: Sequence[str], console: Sequence[str]
) -> ExitReason:
    """Return why a Firecracker process ended. Pure.

    Args:
        returncode: exit code, negative signal number, or None when it is unknown.
        stderr: last lines it wrote.
        console: last lines of the guest's console.

    Source: Firecracker's FcExitCode; 0 is a reset by the guest, which is also how a guest
    powers off or ends after a panic.
    """
    killed = returncode is not None and returncode < 0
    panicked = any(PANIC_LINE in line for line in console)
    if returncode is None:
        cause = ExitCause.UNKNOWN
    elif killed:
        cause = ExitCause.HOST_SIGNAL
    elif returncode == 0:
        cause = ExitCause.GUEST_PANIC if panicked else ExitCause.GUEST_RESET
    else:
        cause = ExitCause.VMM_ERROR
    return ExitReason(
        cause,
        code=None if killed else returncode,
        signal=-returncode if killed and returncode is not None else None,
        stderr=tuple(stderr),
        console=tuple(console),
    )


def _device_of(group: str, names: Mapping[str, str]) -> str:
    """Return the id of the device a group of metrics is about, or the group's name."""
    return names.get(group.partition("_")[2], group)
