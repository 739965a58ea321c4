"""What a pod's VM takes of the host: its size, its cgroup, its CPUs, its place in an OOM."""

from __future__ import annotations

from typing import Any

import trio

from shim.cgroup.pod_cgroup import PodCgroup
from shim.cleanup.ledger import Ledger
from shim.config.model import Config
from shim.events import Publish, TaskOOM
from shim.log import Log
from shim.pod.container import Container
from shim.pod.guest_swap import GuestSwap
from shim.pod.process import LOST_EXIT_STATUS, OOM_EXIT_STATUS, Process
from shim.pod.size import PodSize
from shim.pod.vm import PodVm
from shim.sizing.cpu_pinning import CpuPinning
from shim.sizing.oom_score import OomScore
from shim.sizing.vm_size import Size, counted_resources, is_sandbox, size_rule
from vmm.errors import VmmError


class PodResources:
    """The resources of one pod while its VM runs.

    Args:
        vm: the running VM.
        cgroup: its cgroup on the host, None when it has none.
        config: the effective configuration.
        ledger: takes what is made before it is.
        publish: takes the OOM events.
        log: the shim's log.
    """

    def __init__(
        self,
        vm: PodVm,
        cgroup: PodCgroup | None,
        config: Config,
        ledger: Ledger,
        publish: Publish,
        log: Log,
    ) -> None:
        spec = vm.hypervisor.spec
        self._vm = vm
        self._cgroup = cgroup
        self._publish = publish
        self._log = log
        self._score = OomScore()
        self._pinning = CpuPinning(log) if config.runtime.enable_vcpus_pinning else None
        self._swap = GuestSwap(vm, config, ledger, log)
        self._size = PodSize(
            vm.hypervisor,
            vm.agent,
            size_rule(config),
            Size(spec.vcpus, spec.memory_bytes),
            fixed=config.runtime.static_sandbox_resource_mgmt,
            log=log,
            on_vcpus=cgroup.add_vcpus if cgroup is not None and cgroup.splits else None,
        )

    async def run(self) -> None:
        """Give back what ended containers leave, for as long as the VM runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._size.run)
            nursery.start_soon(self._swap.run)

    async def admit(self, container_id: str, spec: dict[str, Any]) -> str:
        """Make room for a container that is about to be created.

        Args:
            container_id: its id.
            spec: its OCI spec; gets the limit of the swap space it asks for.

        Returns:
            The guest's CPUs that stand for those it is bound to, empty for any.

        Raises:
            ResourceExhausted: the VM did not get the memory.
            InvalidArgument: an annotation's value is wrong.
        """
        await self._swap.admit(container_id, spec)
        cpus = await self._size.admit(container_id, counted_resources(spec))
        if not is_sandbox(spec):
            self._score.admit(container_id, spec, self._pids())
        await self._pin()
        return cpus

    async def release(self, container_id: str) -> None:
        """Forget a container that is gone."""
        self._swap.release(container_id)
        self._size.release(container_id)
        self._score.release(container_id, self._pids())

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        """Apply new limits, the VM growing before and shrinking after it.

        Raises:
            FailedPrecondition: the container has ended.
            ResourceExhausted: the VM did not get the memory.
        """
        container.require_alive("update")
        await self._size.update(container.id, resources, container.update)
        await self._pin()

    async def lost_status(self, process: Process) -> int:
        """The exit status of a process whose VM is gone, and the OOM event if that is why."""
        cgroup = self._cgroup
        if cgroup is None or not await cgroup.ended_by_oom(self._vm.hypervisor.exited):
            return LOST_EXIT_STATUS
        if not process.exec_id:
            self._log.error(cgroup.oom_text())
            self._publish(TaskOOM(process.container_id))
        return OOM_EXIT_STATUS

    def _pids(self) -> list[int]:
        return self._cgroup.pids if self._cgroup is not None else [self._vm.pid]

    async def _pin(self) -> None:
        if self._pinning is None:
            return
        try:
            threads = await self._vm.hypervisor.vcpu_threads()
        except VmmError as err:
            self._log.warning(f"vCPUs are not pinned: {err}")
            return
        ordered = [threads[index] for index in sorted(threads)]
        self._pinning.apply(ordered, self._size.host_cpus())
