"""Makes a pod's VM with all it starts with: directory, share, network namespace, helpers.

Everything made here is pushed on the pod's rollback stack, so that a start that fails
half way and the pod's end undo the same things in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from protos.kata import agent_pb2
from shim import process_table
from shim.config.model import Config
from shim.ledger import Entry, Ledger
from shim.log import Log
from shim.net.netns import open_netns
from shim.pod_vm import Helper, PodVm, PodVmPlan
from shim.rollback import Rollback
from shim.stages import Stages
from shim.storage.guest_share import share_storage
from shim.storage.share import Share
from shim.vm_plan import VmPlan, plan_pod
from vmm.hypervisor import Hypervisor, Recorder
from vmm.spec import VmSpec

if TYPE_CHECKING:
    from shim.prelaunched import Prelaunched

MakeHypervisor = Callable[[VmSpec, Config, Recorder], Hypervisor]
MakeVirtiofsd = Callable[[VmPlan, Config, Recorder], AbstractAsyncContextManager[Helper]]


@dataclass(frozen=True, slots=True)
class Backends:
    """What a pod's VM is made with; the daemon names the concrete ones.

    Args:
        hypervisor: builds the VM's backend.
        virtiofsd: builds the file server's context.
        ahead: what of the VM was started ahead of Create.
    """

    hypervisor: MakeHypervisor
    virtiofsd: MakeVirtiofsd
    ahead: Prelaunched | None = None


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

    async def build(
        self, spec: dict[str, Any], run: Callable[[PodVm], Any]
    ) -> tuple[PodVm, Share | None]:
        """Make everything and run the VM; returns when the guest's agent has answered.

        Args:
            spec: the OCI spec of the pod's first container.
            run: runs the VM in a task of the pod's and returns when it is up.

        Raises:
            ConfigError: no guest image, or settings that exclude each other.
            VmmError: the VM did not come up.
        """
        self._stages.reached("create")
        ahead = await self._claim_ahead(spec)
        if ahead is None:
            self._make_runtime_dir()
            netns = await trio.to_thread.run_sync(open_netns, spec)
        else:
            netns = ahead.take_netns()
        try:
            plan = plan_pod(
                self._config,
                spec,
                sandbox_id=self._id,
                runtime_dir=self._runtime_dir,
                netns=netns,
            )
            share = await self._make_share(plan, ahead)
            vm = PodVm(
                self._backends.hypervisor(plan.spec, self._config, self._recorder("vmm")),
                self._plan(spec, plan),
                self._on_oom,
                self._log,
                self._stages,
            )
            await run(vm)
        finally:
            if netns is not None:
                os.close(netns)
        return vm, share

    def _plan(self, spec: dict[str, Any], plan: VmPlan) -> PodVmPlan:
        helpers: tuple[AbstractAsyncContextManager[Helper], ...] = ()
        if plan.shared_fs == "virtio-fs":
            helpers = (self._backends.virtiofsd(plan, self._config, self._recorder("virtiofsd")),)
        storages: tuple[agent_pb2.Storage, ...] = ()
        if plan.shared_fs != "none":
            storages = (share_storage(plan.shared_fs, plan.msize),)
        return PodVmPlan(
            sandbox_id=self._id,
            spec=plan.spec,
            helpers=helpers,
            storages=storages,
            hostname=spec.get("hostname", ""),
            kernel_modules=self._config.agent.kernel_modules,
            dial_timeout=float(self._config.agent.dial_timeout),
        )

    async def _claim_ahead(self, spec: dict[str, Any]) -> Prelaunched | None:
        """What was started ahead if it is for this spec; anything else of it is undone."""
        ahead = self._backends.ahead
        if ahead is None:
            return None
        if not ahead.fits(spec):
            await trio.to_thread.run_sync(ahead.discard, self._log.warning)
            return None
        directory, rest = ahead.claim()
        self._push_runtime_dir(directory)
        for entry in rest:
            self._push_forget(entry)

        async def end() -> None:
            await trio.to_thread.run_sync(ahead.discard, self._log.warning)

        # For a start that fails before the VM's own task has taken it over.
        self._cleanup.push("the VMM started ahead", end)
        return ahead

    async def _make_share(self, plan: VmPlan, ahead: Prelaunched | None) -> Share | None:
        if plan.shared_fs == "none":
            return None
        share = Share(str(plan.share_dir), self._ledger)
        self._cleanup.push("the share", share.aclose, timeout=30.0)
        if ahead is not None:
            share.adopt(ahead.share_made)
        else:
            await share.prepare()
        return share

    def _make_runtime_dir(self) -> None:
        entry = self._ledger.add("dir", path=str(self._runtime_dir), tree=True)
        os.makedirs(self._runtime_dir, mode=0o700, exist_ok=True)
        self._push_runtime_dir(entry)

    def _push_runtime_dir(self, entry: Entry) -> None:
        async def remove() -> None:
            os.rmdir(self._runtime_dir)
            self._ledger.remove(entry)

        self._cleanup.push(f"directory {self._runtime_dir}", remove)

    def _recorder(self, role: str) -> Recorder:
        """Enter what a backend makes into the ledger, and forget it when it is gone."""

        def record(kind: str, value: str | int) -> None:
            if kind == "process":
                started = process_table.start_time(int(value)) or 0
                entry = self._ledger.add("process", pid=int(value), start_time=started, role=role)
            else:
                entry = self._ledger.add(kind, path=str(value))
            self._push_forget(entry)

        return record

    def _push_forget(self, entry: Entry) -> None:
        async def forget() -> None:
            self._ledger.remove(entry)

        self._cleanup.push(f"ledger entry {entry!r}", forget)
