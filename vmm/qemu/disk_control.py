"""What can be changed and counted of a running VM's disks.

Source: QEMU docs/throttle.txt; QMP ``block_resize``, ``block_set_io_throttle``,
``query-blockstats``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import Conflict, InvalidConfig, NotFound
from vmm.qemu import disks
from vmm.spec import BlockDevice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.hypervisor import Capabilities
    from vmm.qemu.plan import Placed, Plan
    from vmm.qemu.qmp import QmpClient
    from vmm.spec import AttachedDevice, RateLimit

_COUNTERS = {
    "rd_bytes": "read_bytes",
    "wr_bytes": "write_bytes",
    "rd_operations": "read_ops",
    "wr_operations": "write_ops",
    "flush_operations": "flush_ops",
}


class DiskControl:
    """Resizes, throttles and counts.

    Args:
        qmp: control connection.
        plan: the VM's devices.
        capabilities: what this VM can do.
    """

    def __init__(self, qmp: QmpClient, plan: Plan, capabilities: Capabilities) -> None:
        self._qmp = qmp
        self._plan = plan
        self._capabilities = capabilities

    async def resize(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._capabilities.require("block_resize")
        node = disks.node_name(self._find(handle).recipe.name)
        await self._qmp.execute("block_resize", {"node-name": node, "size": size_bytes})

    async def limit(self, handle: AttachedDevice, *limits: RateLimit | None) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_rate_limit`."""
        self._capabilities.require("rate_limit")
        placed = self._find(handle)
        if len(limits) != 1:
            raise InvalidConfig(f"{handle.id}: a disk has one rate limit, not {len(limits)}")
        for path in await self._paths(placed.recipe.name):
            arguments = disks.throttle_arguments(path, limits[0])
            await self._qmp.execute("block_set_io_throttle", arguments)

    async def limit_as_specified(self, handles: Iterable[AttachedDevice]) -> None:
        """Put the limits of their specs on disks that were just made."""
        for handle in handles:
            device = handle.device
            if isinstance(device, BlockDevice) and device.limit is not None:
                await self.limit(handle, device.limit)

    async def _paths(self, name: str) -> list[str]:
        """Where a device is in QEMU's object tree, which depends on its bus."""
        entries = await self._qmp.execute("query-block")
        paths = [entry.get("qdev", "") for entry in entries]
        return [path for path in paths if name in path.split("/")]

    async def counters(self) -> dict[str, dict[str, int]]:
        """See :meth:`vmm.hypervisor.Hypervisor.counters`."""
        self._capabilities.require("counters")
        found = await self._qmp.execute("query-blockstats")
        by_name = {entry.get("qdev", ""): entry["stats"] for entry in found}
        result = {}
        for device_id, placed in self._plan.placed.items():
            for path, stats in by_name.items():
                if placed.recipe.name in path.split("/"):
                    result[device_id] = {ours: stats[name] for name, ours in _COUNTERS.items()}
        return result

    def _find(self, handle: AttachedDevice) -> Placed:
        placed = self._plan.placed.get(handle.id)
        if placed is None or placed.handle != handle:
            raise NotFound(f"no device {handle.id} is attached")
        if not isinstance(placed.handle.device, BlockDevice):
            raise Conflict(f"{handle.id} is not a disk")
        return placed
