"""The size of a running pod's VM: it follows what the containers may use.

Growth comes before the guest is told of a container's limits, shrinking after it
(Kata's order), so that no limit ever promises what is not there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from shim.agent import Agent
from shim.errors import ResourceExhausted
from shim.log import Log
from shim.sizing.vm_size import (
    MIB,
    Demand,
    Size,
    SizeRule,
    container_demand,
    cpu_set,
    guest_cpu_list,
    merged,
    total,
)
from shim.ttrpc.status import TtrpcError
from vmm.errors import LimitExceeded, Unsupported, VmmError
from vmm.hypervisor import Hypervisor, Resized

GROW_TIMEOUT_S = 30.0
# A caller waits so long for a guest to move its pages; the rest is tried beside the calls.
SHRINK_TIMEOUT_S = 5.0
LATE_SHRINK_TIMEOUT_S = 30.0


class PodSize:
    """The size of one VM.

    Args:
        hypervisor: the running VM.
        agent: its guest's agent.
        rule: gives the size for what the containers may use.
        boot: the size it was started with, below which it never goes.
        fixed: it keeps that size.
        log: where each decision goes.
        on_vcpus: gets the host threads of the vCPUs after some were added.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        agent: Agent,
        rule: SizeRule,
        boot: Size,
        *,
        fixed: bool,
        log: Log,
        on_vcpus: Callable[[Iterable[int]], None] | None = None,
    ) -> None:
        self._vm = hypervisor
        self._agent = agent
        self._rule = rule
        self._boot = boot
        self._fixed = fixed
        self._log = log
        self._now = boot
        self._on_vcpus = on_vcpus
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._lock = trio.Lock()
        self._released = trio.Event()

    @property
    def now(self) -> Size:
        """The VM's present size."""
        return self._now

    def target(self) -> Size:
        """The size that the present containers call for."""
        wanted = self._rule.size(self._demand())
        return Size(
            max(wanted.vcpus, self._boot.vcpus), max(wanted.memory_bytes, self._boot.memory_bytes)
        )

    async def admit(self, container_id: str, resources: Mapping[str, Any]) -> str:
        """Make room for a container that is about to be created.

        Args:
            container_id: its id.
            resources: its OCI ``linux.resources``.

        Returns:
            What :meth:`guest_cpus` says of them.

        Raises:
            ResourceExhausted: the VM did not get the memory.
        """
        self._resources[container_id] = resources
        try:
            async with self._lock:
                await self._grow()
        except BaseException:
            self.release(container_id)
            raise
        return self.guest_cpus(resources)

    def release(self, container_id: str) -> None:
        """Forget a container that is gone; :meth:`run` gives its room back."""
        if self._resources.pop(container_id, None) is not None:
            self._released.set()

    async def update(
        self,
        container_id: str,
        changes: Mapping[str, Any],
        apply: Callable[[dict[str, Any], str], Awaitable[None]],
    ) -> None:
        """Change a container's limits, the VM growing before and shrinking after it.

        Args:
            container_id: a container that was admitted.
            changes: OCI resources; what they do not name stays.
            apply: tells the guest; gets the changes and what :meth:`guest_cpus` says of them.

        Raises:
            ResourceExhausted: the VM did not get the memory; the limits are as before.
        """
        async with self._lock:
            before = self._resources.get(container_id, {})
            self._resources[container_id] = merged(before, changes)
            try:
                await self._grow()
                await apply(dict(changes), self.guest_cpus(changes))
            except BaseException:
                if container_id in self._resources:  # else it was deleted meanwhile
                    self._resources[container_id] = before
                self._released.set()
                raise
            await self._shrink(SHRINK_TIMEOUT_S)
            if self._now.memory_bytes > self.target().memory_bytes:
                self._released.set()

    def guest_cpus(self, resources: Mapping[str, Any]) -> str:
        """The guest's CPUs for a container bound to CPUs of the host, empty for any."""
        limit = self._vm.spec.vcpu_limit
        return guest_cpu_list(resources, self._resources.values(), self._now, limit)

    def host_cpus(self) -> frozenset[int]:
        """The host's CPUs that containers are bound to."""
        return frozenset().union(*map(cpu_set, self._resources.values()))

    async def run(self) -> None:
        """Give back the room of released containers for as long as the VM runs."""
        while True:
            await self._released.wait()
            self._released = trio.Event()
            async with self._lock:
                await self._shrink(LATE_SHRINK_TIMEOUT_S)

    def _demand(self) -> Demand:
        return total(container_demand(resources) for resources in self._resources.values())

    async def _grow(self) -> None:
        if cut := self._rule.shortfall(self._demand()):
            self._log.warning(f"{cut}: it gets {self.target()}")
        target = self.target()
        if target.vcpus > self._now.vcpus:
            await self._resize_vcpus(target.vcpus, GROW_TIMEOUT_S)
        if target.memory_bytes > self._now.memory_bytes:
            await self._grow_memory(target.memory_bytes)

    async def _shrink(self, timeout: float) -> None:
        target = self.target()
        if target.vcpus < self._now.vcpus:
            await self._resize_vcpus(target.vcpus, timeout)
        if target.memory_bytes < self._now.memory_bytes:
            await self._shrink_memory(target.memory_bytes, timeout)

    async def _resize_vcpus(self, count: int, timeout: float) -> None:
        """Set the vCPUs; with fewer than asked for, containers run slower but run."""
        before = self._now
        if self._kept(f"{count} vCPUs"):
            return
        try:
            resized = await self._vm.resize_vcpus(count, timeout)
            if resized.guest_must_online:
                if self._on_vcpus is not None:
                    self._on_vcpus((await self._vm.vcpu_threads()).values())
                await self._agent.online_cpus(max(0, resized.actual - before.vcpus))
        except (VmmError, TtrpcError) as err:
            self._log.warning(f"the VM keeps {before.vcpus} vCPUs, {count} were asked for: {err}")
            if isinstance(err, Unsupported | LimitExceeded):
                return
            resized = Resized(await self._present_vcpus(before.vcpus), guest_must_online=False)
        self._note(Size(resized.actual, before.memory_bytes))

    async def _present_vcpus(self, otherwise: int) -> int:
        try:
            return len(await self._vm.vcpu_threads())
        except VmmError:
            return otherwise

    async def _grow_memory(self, size: int) -> None:
        if self._kept(f"{size // MIB} MiB"):
            return
        try:
            resized = await self._vm.resize_memory(size, GROW_TIMEOUT_S)
        except Unsupported as err:
            self._log.warning(f"the VM keeps its {self._now.memory_bytes // MIB} MiB: {err}")
            return
        except VmmError as err:
            raise ResourceExhausted(
                f"the VM did not grow from {self._now.memory_bytes // MIB} to "
                f"{size // MIB} MiB: {err}"
            ) from err
        if resized.actual < size:
            self._log.warning(
                f"the guest took {resized.actual // MIB} of {size // MIB} MiB "
                f"within {GROW_TIMEOUT_S:g} s"
            )
        self._note(Size(self._now.vcpus, resized.actual))

    async def _shrink_memory(self, size: int, timeout: float) -> None:
        if self._kept(f"{size // MIB} MiB"):
            return
        try:
            resized = await self._vm.resize_memory(size, timeout)
        except VmmError as err:
            self._log.info(f"the VM keeps its {self._now.memory_bytes // MIB} MiB: {err}")
            return
        self._note(Size(self._now.vcpus, resized.actual))

    def _kept(self, wanted: str) -> bool:
        if self._fixed:
            self._log.warning(
                f"static_sandbox_resource_mgmt: the VM keeps {self._now}, {wanted} were asked for"
            )
        return self._fixed

    def _note(self, size: Size) -> None:
        self._now = size
        self._log.info(f"the VM has {self._rule.explain(self._demand())}", now=str(size))
