"""Attach and detach devices of a running Cloud Hypervisor VM.

Removal has two phases. ``vm.remove-device`` only asks the guest; the device and its id stay
reserved until the ``device-removed`` event, however long after the caller's deadline
that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import trio

from vmm.cloud_hypervisor.bodies import COLLECTIONS
from vmm.errors import (
    Conflict,
    ControlTimeout,
    GuestTimeout,
    InvalidConfig,
    NotFound,
    Unsupported,
    VmmError,
)
from vmm.events import DeviceRemoved
from vmm.spec import BlockDevice, FsDevice, NetDevice, PmemDevice, VfioDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vmm.cloud_hypervisor.plan import Landlock, Placed, Plan
    from vmm.events import Event
    from vmm.hypervisor import Capabilities
    from vmm.spec import AttachedDevice, Device


class Call(Protocol):
    """Makes a request of the API and returns its answer."""

    async def __call__(  # noqa: D102
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Any: ...


class HotPlug:
    """Attaches and detaches devices.

    Args:
        call: makes a request.
        plan: the VM's devices.
        capabilities: what this VM can do.
        landlock: what files the VMM may open; None for all.
        publish: takes events.
    """

    def __init__(
        self,
        call: Call,
        plan: Plan,
        capabilities: Capabilities,
        landlock: Landlock | None,
        publish: Callable[[Event], None],
    ) -> None:
        self._call = call
        self._plan = plan
        self._capabilities = capabilities
        self._landlock = landlock
        self._publish = publish
        self._removals: dict[str, trio.Event] = {}

    def require(self, device: Device) -> None:
        """Raise unless this device can be hot-plugged.

        Raises:
            Unsupported: not this kind.
            InvalidConfig: landlock keeps its file from the VMM.
        """
        path: Path | None = None
        match device:
            case BlockDevice():
                self._capabilities.require("block_hot")
                path = device.path
            case NetDevice():
                self._capabilities.require("net_hot")
                path = device.socket
            case FsDevice():
                self._capabilities.require("fs_hot")
                path = device.socket
            case PmemDevice():
                self._capabilities.require("pmem_hot")
                path = device.path
            case VfioDevice():
                self._capabilities.require("vfio_hot")
            case _:
                kind = type(device).__name__
                raise Unsupported(f"hot-plug of a {kind}", "only at boot", self._capabilities.vmm)
        if self._landlock is not None and path is not None and not self._landlock.covers(path):
            raise InvalidConfig(
                f"{device.id}: {path} is in none of the paths that landlock lets "
                f"{self._capabilities.vmm} open"
            )

    async def attach(self, device: Device, timeout: float) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`."""
        self.require(device)
        # Being cancelled between request and answer would leave a device nobody knows of.
        with trio.move_on_after(timeout, shield=True):
            placed = self._plan.add(device, hot=True)
            try:
                answer = await self.add(placed)
            except VmmError:
                self._plan.release(placed.name)
                raise
            return self._plan.put_at(placed, str((answer or {}).get("bdf", "")))
        raise ControlTimeout(f"Cloud Hypervisor did not attach {device.id} within {timeout:g} s")

    async def add(self, placed: Placed) -> Any:
        """Add a device, before the boot as well."""
        device = placed.handle.device
        fds = device.fds if isinstance(device, NetDevice) else ()
        suffix = COLLECTIONS[type(device)][1]
        return await self._call("PUT", f"/vm.add-{suffix}", placed.body, fds=fds)

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`."""
        placed = self.find(handle)
        if not placed.handle.hot:
            raise Conflict(f"{handle.id} was there at boot and can't be detached")
        gone = self._removals.setdefault(placed.name, trio.Event())
        with trio.move_on_after(timeout):
            await self._call("PUT", "/vm.remove-device", {"id": placed.name})
            await gone.wait()
            return
        raise GuestTimeout(f"the guest has not let go of {handle.id} within {timeout:g} s")

    def removed(self, name: str) -> None:
        """Take the VMM's word that a device is gone."""
        device_id = self._plan.release(name)
        if device_id is not None:
            self._publish(DeviceRemoved(device_id))
        if (gone := self._removals.pop(name, None)) is not None:
            gone.set()

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.resize_block`."""
        self._capabilities.require("block_resize")
        placed = self.find(handle)
        device = placed.handle.device
        if not isinstance(device, BlockDevice):
            raise Conflict(f"{handle.id} is not a disk")
        body = {"id": placed.name, "desired_size": size_bytes}
        await self._call("PUT", "/vm.resize-disk", body)

    def find(self, handle: AttachedDevice) -> Placed:
        """Return what is known of a device.

        Raises:
            NotFound: no such device is attached.
        """
        placed = self._plan.placed.get(handle.id)
        if placed is None or placed.handle != handle:
            raise NotFound(f"no device {handle.id} is attached")
        return placed
