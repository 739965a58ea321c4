"""Change the number of virtual CPUs and the memory of a running Cloud Hypervisor VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vmm.errors import Conflict, GuestTimeout, InvalidConfig
from vmm.events import MemoryChanged
from vmm.hypervisor import Resized

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.cloud_hypervisor.hotplug import Call
    from vmm.cloud_hypervisor.plan import Plan
    from vmm.events import Event
    from vmm.hypervisor import Capabilities

_TARGET = "/vm.resize"
_LOOK_INTERVAL = 0.05


class Resizer:
    """Hot-plugs and unplugs virtual CPUs and memory.

    Args:
        call: makes a request.
        plan: the VM.
        capabilities: what this VM can do.
        publish: takes events.
    """

    def __init__(
        self,
        call: Call,
        plan: Plan,
        capabilities: Capabilities,
        publish: Callable[[Event], None],
    ) -> None:
        self._call = call
        self._spec = plan.spec
        self._capabilities = capabilities
        self._publish = publish
        self._lock = trio.Lock()
        self._vcpus = plan.spec.vcpus

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_vcpus`."""
        self._capabilities.require("vcpu_up")
        if not 1 <= count <= self._spec.vcpu_limit:
            raise InvalidConfig(
                f"{count} virtual CPUs: this VM can have 1 to {self._spec.vcpu_limit}"
            )
        async with self._lock:
            before = self._vcpus
            await self._call("PUT", _TARGET, {"desired_vcpus": count})
            if count < before:
                await self._until_removed(count, timeout)
            self._vcpus = count
        return Resized(count, guest_must_online=count > before)

    async def _until_removed(self, count: int, timeout: float) -> None:
        # While the guest has not let go, asking for the same again is refused as too early.
        with trio.move_on_after(timeout):
            while True:
                try:
                    await self._call("PUT", _TARGET, {"desired_vcpus": count})
                except Conflict:
                    await trio.sleep(_LOOK_INTERVAL)
                else:
                    return
        raise GuestTimeout(f"the guest has not let go of its CPUs within {timeout:g} s")

    async def resize_memory(self, size_bytes: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_memory`.

        Cloud Hypervisor does not tell how far the guest came; what is returned is what it
        may have.
        """
        self._capabilities.require("mem_up")
        granule = self._capabilities.mem_granule
        hot = -(-(size_bytes - self._spec.memory_bytes) // granule) * granule
        if not 0 <= hot <= self._capabilities.mem_max - self._spec.memory_bytes:
            limits = f"{self._spec.memory_bytes} to {self._capabilities.mem_max}"
            raise InvalidConfig(f"{size_bytes} bytes of memory: this VM can have {limits}")
        wanted = self._spec.memory_bytes + hot
        async with self._lock:
            if wanted < await self._present():
                self._capabilities.require("mem_down")
            await self._call("PUT", _TARGET, {"desired_ram": wanted}, timeout=timeout)
            actual = await self._present()
        self._publish(MemoryChanged(actual - self._spec.memory_bytes))
        return Resized(actual, guest_must_online=False)

    async def _present(self) -> int:
        memory = (await self._call("GET", "/vm.info"))["config"]["memory"]
        return int(memory["size"]) + int(memory.get("hotplugged_size") or 0)
