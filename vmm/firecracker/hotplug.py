"""Attach and detach devices of a running Firecracker VM, and change them."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from vmm.errors import Conflict, ControlTimeout, InvalidConfig, NotFound, Unsupported, VmmError
from vmm.events import DeviceRemoved
from vmm.firecracker.bodies import limiter
from vmm.spec import BlockDevice, NetDevice, PmemDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vmm.events import Event
    from vmm.firecracker.jail import Jail
    from vmm.firecracker.plan import Placed, Plan
    from vmm.hypervisor import Capabilities
    from vmm.spec import AttachedDevice, Device, RateLimit

logger = logging.getLogger(__name__)


class Call(Protocol):
    """Makes a request of the API and returns its answer."""

    async def __call__(  # noqa: D102
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any: ...


class HotPlug:
    """Attaches, detaches and changes devices.

    Args:
        call: makes a request.
        plan: the VM's devices and free places.
        capabilities: what this VM can do.
        jail: where files must be brought to; None for nowhere.
        placeholder: the empty file of free placeholders, as Firecracker sees it.
        publish: takes events.
    """

    def __init__(
        self,
        call: Call,
        plan: Plan,
        capabilities: Capabilities,
        jail: Jail | None,
        placeholder: str,
        publish: Callable[[Event], None],
    ) -> None:
        self._call = call
        self._plan = plan
        self._capabilities = capabilities
        self._jail = jail
        self._placeholder = placeholder
        self._publish = publish

    def require(self, device: Device) -> None:
        """Raise ``Unsupported`` unless this kind of device can be hot-plugged."""
        match device:
            case BlockDevice():
                self._capabilities.require("block_hot")
            case NetDevice():
                self._capabilities.require("net_hot")
            case PmemDevice():
                self._capabilities.require("pmem_hot")
            case _:
                kind = type(device).__name__
                raise Unsupported(f"hot-plug of a {kind}", "only at boot", self._capabilities.vmm)

    async def attach(self, device: Device, timeout: float) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`."""
        self.require(device)
        # Being cancelled between request and answer would leave a device nobody knows of.
        with trio.move_on_after(timeout, shield=True):
            await self._bring_in(device)
            try:
                if isinstance(device, BlockDevice) and self._capabilities.block_hot == "swap":
                    return await self._swap_in(device)
                return await self._add(device)
            except VmmError:
                await self._take_out(device)
                raise
        raise ControlTimeout(f"Firecracker did not attach {device.id} within {timeout:g} s")

    async def _bring_in(self, device: Device) -> None:
        if self._jail is not None and isinstance(device, (BlockDevice, PmemDevice)):
            bring_in = partial(self._jail.bring_in, device.path, read_only=device.read_only)
            await trio.to_thread.run_sync(bring_in)

    async def _take_out(self, device: Device) -> None:
        if self._jail is not None and isinstance(device, (BlockDevice, PmemDevice)):
            await trio.to_thread.run_sync(self._jail.take_out, device.path)

    async def _add(self, device: Device) -> AttachedDevice:
        placed = self._plan.add_pci(device)
        try:
            await self._call("PUT", placed.target, self._plan.body(device, placed.name))
        except VmmError:
            self._plan.release(placed)
            raise
        return placed.handle

    async def _swap_in(self, device: BlockDevice) -> AttachedDevice:
        placed = self._plan.add_to_pool(device)
        body: dict[str, object] = {
            "drive_id": placed.name,
            "path_on_host": self._plan.map_path(device.path),
        }
        if device.limit is not None:
            body["rate_limiter"] = limiter(device.limit)
        try:
            await self._call("PATCH", placed.target, body)
        except VmmError:
            self._plan.release(placed)
            raise
        return placed.handle

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`."""
        placed = self.find(handle)
        if not placed.handle.hot:
            raise Conflict(f"{handle.id} was there at boot and can't be detached")
        if placed.name in self._plan.pool:
            body = {
                "drive_id": placed.name,
                "path_on_host": self._placeholder,
                "rate_limiter": limiter(None, change=True),
            }
            await self._call("PATCH", placed.target, body, timeout=timeout)
        else:
            await self._call("DELETE", placed.target, timeout=timeout)
        self._plan.release(placed)
        await self._take_out(placed.handle.device)
        self._publish(DeviceRemoved(handle.id))

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._capabilities.require("block_resize")
        placed = self.find(handle)
        device = placed.handle.device
        if not isinstance(device, BlockDevice):
            raise Conflict(f"{handle.id} is not a disk")
        await trio.to_thread.run_sync(grow_file, device.path, size_bytes)
        # The size is read again whenever a file is set, the same one too.
        body = {"drive_id": placed.name, "path_on_host": self._plan.map_path(device.path)}
        await self._call("PATCH", placed.target, body)

    async def set_rate_limit(
        self, handle: AttachedDevice, limits: Sequence[RateLimit | None]
    ) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.set_rate_limit`."""
        self._capabilities.require("rate_limit")
        placed = self.find(handle)
        values = [limiter(limit, change=True) for limit in limits]
        match placed.handle.device, values:
            case BlockDevice(), [limit]:
                body = {"drive_id": placed.name, "rate_limiter": limit}
            case PmemDevice(), [limit]:
                if not self._plan.features.has("pmem_limit"):
                    detail = f"of pmem: {self._plan.features.since('pmem_limit')}"
                    raise Unsupported("rate_limit", detail, self._capabilities.vmm)
                body = {"id": placed.name, "rate_limiter": limit}
            case NetDevice(), [receive, send]:
                body = {
                    "iface_id": placed.name,
                    "rx_rate_limiter": receive,
                    "tx_rate_limiter": send,
                }
            case _:
                raise InvalidConfig(f"{handle.id} does not have {len(values)} rate limits")
        await self._call("PATCH", placed.target, body)

    def find(self, handle: AttachedDevice) -> Placed:
        """Return what is known of a device.

        Raises:
            NotFound: no such device is attached.
        """
        placed = self._plan.placed.get(handle.id)
        if placed is None or placed.handle != handle:
            raise NotFound(f"no device {handle.id} is attached")
        return placed


def grow_file(path: Path, size_bytes: int) -> None:
    """Make a disk's file as large as the disk is to be; block devices are left alone.

    Raises:
        InvalidConfig: it can't be, or is larger already.
    """
    try:
        if path.is_block_device():
            return
        if path.stat().st_size > size_bytes:
            raise InvalidConfig(f"{path} is larger than {size_bytes} bytes")
        os.truncate(path, size_bytes)
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from error
