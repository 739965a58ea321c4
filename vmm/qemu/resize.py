"""Change the number of virtual CPUs and the memory of a running VM."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import trio

from vmm.errors import ApiError, GuestTimeout, InvalidConfig, LimitExceeded
from vmm.hypervisor import Resized
from vmm.qemu.memory import VIRTIO_MEM_ID, memory_backend_type

if TYPE_CHECKING:
    from vmm.hypervisor import Capabilities
    from vmm.qemu.hotplug import Removals
    from vmm.qemu.qmp import QmpClient
    from vmm.spec import VmSpec

logger = logging.getLogger(__name__)

_VIRTIO_MEM_PATH = f"/machine/peripheral/{VIRTIO_MEM_ID}"
# QEMU reports size changes once a second at most, so look in between.
_LOOK_INTERVAL = 0.05


class Resizer:
    """Hot-plugs and unplugs virtual CPUs and memory.

    Args:
        qmp: control connection.
        removals: unplug requests.
        spec: the VM.
        capabilities: what this VM can do.
        emulated: whether QEMU emulates the CPUs.
    """

    def __init__(
        self,
        qmp: QmpClient,
        removals: Removals,
        spec: VmSpec,
        capabilities: Capabilities,
        *,
        emulated: bool,
    ) -> None:
        self._qmp = qmp
        self._removals = removals
        self._spec = spec
        self._capabilities = capabilities
        self._lock = trio.Lock()
        self._cpus: list[str] = []
        # Emulation makes room for so many CPU threads and aborts beyond, as the room of
        # a removed CPU is not used again.
        self._additions_left = spec.vcpu_limit - spec.vcpus if emulated else sys.maxsize
        self._dimms: dict[str, int] = {}
        self._serial = 0

    def _new_name(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}{self._serial}"

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_vcpus`."""
        self._capabilities.require("vcpu_up", "max_vcpus over vcpus")
        if not self._spec.vcpus <= count <= self._spec.vcpu_limit:
            limits = f"{self._spec.vcpus} to {self._spec.vcpu_limit}"
            raise InvalidConfig(f"{count} virtual CPUs: this VM can have {limits}")
        async with self._lock:
            slots: list[dict[str, Any]] = await self._qmp.execute("query-hotpluggable-cpus")
            present = sum("qom-path" in slot for slot in slots)
            if count < present:
                self._capabilities.require("vcpu_down", "KVM, or QEMU 10 or later")
            free = [slot for slot in reversed(slots) if "qom-path" not in slot]
            wanted = free[: max(0, count - present)]
            if len(wanted) > self._additions_left:
                raise LimitExceeded("emulation can't add a CPU again once it was removed")
            for slot in wanted:
                self._additions_left -= 1
                name = self._new_name("vcpu")
                await self._qmp.execute(
                    "device_add", {"driver": slot["type"], "id": name, **slot["props"]}
                )
                self._cpus.append(name)
            deadline = trio.current_time() + timeout
            for _ in range(present - count):
                await self._remove_cpu(self._cpus[-1], max(0.0, deadline - trio.current_time()))
            actual = len(await self._qmp.execute("query-cpus-fast"))
        return Resized(actual, guest_must_online=actual > present)

    async def _remove_cpu(self, name: str, timeout: float) -> None:
        async def after(gone: bool) -> None:
            if gone:
                self._cpus.remove(name)

        async def is_gone() -> bool:
            slots = await self._qmp.execute("query-hotpluggable-cpus")
            return not any(slot.get("qom-path", "").endswith(f"/{name}") for slot in slots)

        await self._removals.remove(name, timeout, after, is_gone)

    async def resize_memory(self, size_bytes: int, timeout: float) -> Resized:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_memory`."""
        self._capabilities.require("mem_up", "max_memory_bytes over memory_bytes")
        granule = self._capabilities.mem_granule
        hot = -(-(size_bytes - self._spec.memory_bytes) // granule) * granule
        if not 0 <= hot <= self._capabilities.mem_max - self._spec.memory_bytes:
            limits = f"{self._spec.memory_bytes} to {self._capabilities.mem_max}"
            raise InvalidConfig(f"{size_bytes} bytes of memory: this VM can have {limits}")
        async with self._lock:
            if self._spec.memory_hotplug == "virtio-mem":
                actual = await self._resize_virtio_mem(hot, timeout)
            else:
                actual = await self._resize_dimms(hot, timeout)
        return Resized(self._spec.memory_bytes + actual, guest_must_online=False)

    async def _resize_virtio_mem(self, wanted: int, timeout: float) -> int:
        before = await self._virtio_mem_size()
        actual = before
        with self._qmp.subscribe() as events:
            await self._request(wanted)
            with trio.move_on_after(timeout):
                while (actual := await self._virtio_mem_size()) != wanted:
                    with trio.move_on_after(_LOOK_INTERVAL):
                        async for event in events:
                            if event.name == "MEMORY_DEVICE_SIZE_CHANGE":
                                break
        if actual != wanted:
            # The guest must not go on behind our back with what we no longer count on.
            await self._request(actual)
            if actual == before:
                raise GuestTimeout(
                    f"the guest changed no memory within {timeout:g} s; its kernel needs virtio_mem"
                )
        return actual

    async def _request(self, size: int) -> None:
        await self._qmp.execute(
            "qom-set", {"path": _VIRTIO_MEM_PATH, "property": "requested-size", "value": size}
        )

    async def _virtio_mem_size(self) -> int:
        value = await self._qmp.execute("qom-get", {"path": _VIRTIO_MEM_PATH, "property": "size"})
        return int(value)

    async def _resize_dimms(self, wanted: int, timeout: float) -> int:
        actual = sum(self._dimms.values())
        if wanted > actual:
            await self._add_dimm(wanted - actual)
        deadline = trio.current_time() + timeout
        for name, size in reversed(list(self._dimms.items())):
            if sum(self._dimms.values()) - size < wanted:
                continue

            async def after(gone: bool, name: str = name) -> None:
                if gone:
                    del self._dimms[name]
                    await self._qmp.execute("object-del", {"id": f"{name}-mem"})

            left = max(0.0, deadline - trio.current_time())
            await self._removals.remove(name, left, after)
        return sum(self._dimms.values())

    async def _add_dimm(self, size: int) -> None:
        name = self._new_name("dimm")
        backend = {
            "qom-type": memory_backend_type(self._spec),
            "id": f"{name}-mem",
            "size": size,
            "share": self._spec.needs_shared_memory,
        }
        await self._qmp.execute("object-add", backend)
        try:
            await self._qmp.execute(
                "device_add", {"driver": "pc-dimm", "id": name, "memdev": f"{name}-mem"}
            )
        except ApiError:
            await self._qmp.execute("object-del", {"id": f"{name}-mem"})
            raise
        self._dimms[name] = size
