"""Makes a pod's VM with all it starts with: directory, share, network namespace, helpers.

Everything made here is pushed on the pod's rollback stack, so that a start that fails
half way and the pod's end undo the same things in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from protos.kata import agent_pb2
from shim.cgroup.pod_cgroup import PodCgroup, make_pod_cgroup
from shim.cleanup import process_table
from shim.cleanup.ledger import Entry, Ledger
from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.errors import ResourceExhausted
from shim.log import Log
from shim.net.open_network import open_network
from shim.oci.pod import PodSettings
from shim.pod.vfio import cold_plugged
from shim.pod.vm import Helper, PodVm, PodVmPlan
from shim.pod.vm_plan import VmPlan, needs_vsock, plan_vm
from shim.sizing.vm_size import Size, boot_demand, size_rule
from shim.stages import Stages
from shim.storage.guest_share import share_storage, shm_storage
from shim.storage.share import Share
from vmm.errors import VmmError
from vmm.hypervisor import Hypervisor, Recorder
from vmm.spec import VfioDevice, VmSpec, VsockDevice

EXTRA_MONITOR = "extra-monitor.sock"

MakeHypervisor = Callable[[VmSpec, Config, Recorder], Hypervisor]
MakeVirtiofsd = Callable[[VmPlan, Config, Recorder], AbstractAsyncContextManager[Helper]]
ReserveVsock = Callable[[Path], VsockDevice]
MakeVsockDaemon = Callable[[Path, Config, Recorder], AbstractAsyncContextManager[Helper]]


@dataclass(frozen=True, slots=True)
class Backends:
    """What a pod's VM is made with; the daemon names the concrete ones.

    Args:
        hypervisor: builds the VM's backend.
        virtiofsd: builds the file server's context.
        vsock: gives the VM a vsock device: the host kernel's, else the daemon's.
        vsock_daemon: builds the context of the vsock daemon.
        whole_9p: whether the VMM's 9p knows sockets, FIFOs and device nodes. Blocks.
    """

    hypervisor: MakeHypervisor
    virtiofsd: MakeVirtiofsd
    vsock: ReserveVsock
    vsock_daemon: MakeVsockDaemon
    whole_9p: Callable[[Config], bool]


class PodBuilder:
    """Makes the VM of one pod.

    Args:
        sandbox_id: the pod's id.
        config: the effective configuration.
        ledger: takes every resource before it is made.
        runtime_dir: short directory for sockets and the share; made when needed.
        backends: what the VM is made with.
        cleanup: the pod's rollback stack.
        on_oom: called with a container's id when the guest's OOM killer struck in it.
        log: the shim's log.
        stages: the pod's start.
    """

    def __init__(
        self,
        *,
        sandbox_id: str,
        config: Config,
        ledger: Ledger,
        runtime_dir: Path,
        backends: Backends,
        cleanup: Rollback,
        on_oom: Callable[[str], None],
        log: Log,
        stages: Stages,
    ) -> None:
        self._id = sandbox_id
        self._config = config
        self._ledger = ledger
        self._runtime_dir = runtime_dir
        self._backends = backends
        self._cleanup = cleanup
        self._on_oom = on_oom
        self._log = log
        self._stages = stages
        self.cgroup: PodCgroup | None = None

    def configure(self, config: Config) -> None:
        """Use this configuration from now on: the pod's first container has annotations."""
        self._config = config

    async def build(
        self, spec: dict[str, Any], settings: PodSettings, run: Callable[[PodVm], Any]
    ) -> tuple[PodVm, Share | None]:
        """Make everything and run the VM; returns when the guest's agent has answered.

        Args:
            spec: the OCI spec of the pod's first container.
            settings: what its containers share, from that spec.
            run: runs the VM in a task of the pod's and returns when it is up.

        Raises:
            ConfigError: no guest image, or settings that exclude each other.
            VmmError: the VM did not come up.
            KatapyError: a PCI device of the host can't be had (:func:`cold_plugged`).
            ResourceExhausted: the pod's memory limit on the host is too small for it.
        """
        self._stages.reached("create")
        self._make_runtime_dir()
        size = self._boot_size(spec)
        await self._make_cgroup(spec)
        vsock: VsockDevice | None = None
        netns, network = await open_network(
            spec,
            self._id,
            self._config,
            self._runtime_dir,
            ledger=self._ledger,
            cleanup=self._cleanup,
            log=self._log,
        )
        try:
            cards = await network.connect() if network is not None else ()
            if needs_vsock(self._config):
                vsock = self._backends.vsock(self._runtime_dir)
            whole_9p = await trio.to_thread.run_sync(self._backends.whole_9p, self._config)
            plan = plan_vm(
                self._config,
                name=f"katapy-{self._id}",
                runtime_dir=self._runtime_dir,
                netns=netns,
                vsock=vsock,
                size=size,
                whole_9p=whole_9p,
            )
            passed = await trio.to_thread.run_sync(cold_plugged, spec, self._config)
            devices = (*plan.spec.devices, *cards, *passed)
            whole = sum(isinstance(device, VfioDevice) for device in (*cards, *passed))
            ports = plan.spec.root_ports + (whole if plan.cold_ports else 0)
            plan = replace(plan, spec=replace(plan.spec, devices=devices, root_ports=ports))
            if plan.spec.extra_monitor:
                where = self._runtime_dir / EXTRA_MONITOR
                self._log.info(f"the VMM's extra monitor is at {where}")
            share = await self._make_share(plan)
            vm = PodVm(
                self._backends.hypervisor(plan.spec, self._config, self._recorder("vmm")),
                replace(self._plan(settings, plan), network=network),
                self._on_oom,
                self._log,
                self._stages,
            )
            try:
                await run(vm)
            except VmmError as err:
                if self.cgroup is not None and self.cgroup.oom_kills():
                    raise ResourceExhausted(
                        f"the host's OOM killer ended the VM in {self.cgroup.main.path}: the pod's "
                        f"memory limit has to leave room for it (RuntimeClass overhead): {err}"
                    ) from err
                raise
            if self.cgroup is not None:
                self.cgroup.add_children()
                if self.cgroup.splits:
                    self.cgroup.add_vcpus((await vm.hypervisor.vcpu_threads()).values())
        finally:
            if netns is not None:
                os.close(netns)
            if vsock is not None and vsock.fd >= 0:
                os.close(vsock.fd)  # the VMM has its own
        return vm, share

    def _boot_size(self, spec: dict[str, Any]) -> Size:
        demand, rule = boot_demand(spec), size_rule(self._config)
        self._log.info(f"the VM starts with {rule.explain(demand)}")
        if cut := rule.shortfall(demand):
            self._log.warning(f"{cut}: it gets {rule.size(demand)}")
        return rule.size(demand)

    def _plan(self, settings: PodSettings, plan: VmPlan) -> PodVmPlan:
        helpers: list[AbstractAsyncContextManager[Helper]] = []
        if plan.shared_fs == "virtio-fs":
            record = self._recorder("virtiofsd")
            helpers.append(self._backends.virtiofsd(plan, self._config, record))
        if any(isinstance(d, VsockDevice) and d.vhost_user for d in plan.spec.devices):
            record = self._recorder("vhost-device-vsock")
            helpers.append(self._backends.vsock_daemon(self._runtime_dir, self._config, record))
        storages: tuple[agent_pb2.Storage, ...] = ()
        if plan.shared_fs != "none":
            storages = (share_storage(plan.shared_fs, plan.msize),)
        if settings.shm_bytes:
            storages += (shm_storage(settings.shm_bytes),)
        return PodVmPlan(
            sandbox_id=self._id,
            spec=plan.spec,
            helpers=tuple(helpers),
            storages=storages,
            hostname=settings.hostname,
            dns=settings.dns,
            sysctls=settings.sysctls,
            kernel_modules=self._config.agent.kernel_modules,
            guest_hook_path=str(self._config.hypervisor.guest_hook_path or ""),
            dial_timeout=float(self._config.agent.dial_timeout),
            log_console=self._config.hypervisor.enable_debug,
        )

    async def _make_share(self, plan: VmPlan) -> Share | None:
        if plan.shared_fs == "none":
            return None
        share = Share(str(plan.share_dir), self._ledger)
        self._cleanup.push("the share", share.aclose, timeout=30.0)
        await share.prepare()
        for entry in self._config.runtime.sandbox_bind_mounts:
            await share.add_sandbox_mount(entry)
        return share

    def _make_runtime_dir(self) -> None:
        entry = self._ledger.add("dir", path=str(self._runtime_dir), tree=True)
        os.makedirs(self._runtime_dir, mode=0o700, exist_ok=True)

        async def remove() -> None:
            os.rmdir(self._runtime_dir)
            self._ledger.remove(entry)

        self._cleanup.push(f"directory {self._runtime_dir}", remove)

    async def _make_cgroup(self, spec: dict[str, Any]) -> None:
        make = partial(
            make_pod_cgroup,
            spec.get("linux", {}).get("cgroupsPath", ""),
            self._id,
            self._ledger,
            self._log.warning,
            sandbox_cgroup_only=self._config.runtime.sandbox_cgroup_only,
        )
        self.cgroup = cgroup = await trio.to_thread.run_sync(make)
        if cgroup is not None:
            self._cleanup.push("the pod's host cgroup", cgroup.remove)

    def _recorder(self, role: str) -> Recorder:
        """Enter what a backend makes into the ledger, and forget it when it is gone.

        Its process is announced with the first of its sockets, by what its command line
        will hold, so that one is found whose pid this shim did not live to record.
        """
        announced: Entry | None = None

        def record(kind: str, value: str | int) -> None:
            nonlocal announced
            if announced is None:
                announced = self._ledger.add(
                    "process", pid=0, start_time=0, role=role, marker=str(self._runtime_dir)
                )
                self._forget_at_end(announced)
            if kind == "process":
                started = process_table.start_time(int(value)) or 0
                self._ledger.update(announced, pid=int(value), start_time=started)
                if self.cgroup is not None:
                    self.cgroup.add(int(value))
            elif kind == "tree":
                self._forget_at_end(self._ledger.add("dir", path=str(value), tree=True))
            elif kind == "mount":
                self._forget_at_end(self._ledger.add("mount", target=str(value)))
            else:
                self._forget_at_end(self._ledger.add(kind, path=str(value)))

        return record

    def _forget_at_end(self, entry: Entry) -> None:
        async def forget() -> None:
            self._ledger.remove(entry)

        self._cleanup.push(f"ledger entry {entry!r}", forget)
