"""Attach and detach devices of a running VM.

Removal has two phases. ``device_del`` only asks the guest; the device, its back-end and
its port stay reserved until QEMU says ``DEVICE_DELETED``, however long after the
caller's deadline that is.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import trio

from vmm.errors import (
    ApiError,
    Conflict,
    ControlTimeout,
    GuestTimeout,
    NotFound,
    Unsupported,
    VmmError,
)
from vmm.events import DeviceRemoved, DeviceRemoveFailed
from vmm.qemu.plan import own_fds
from vmm.spec import (
    BlockDevice,
    FsDevice,
    NetDevice,
    PmemDevice,
    VfioDevice,
    VhostUserBlockDevice,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmm.background import Background
    from vmm.broadcast import Subscription
    from vmm.events import Event
    from vmm.hypervisor import Capabilities
    from vmm.qemu.plan import Placed, Plan
    from vmm.qemu.qmp import QmpClient
    from vmm.qemu.qmp_codec import QmpEvent
    from vmm.qemu.steps import Step
    from vmm.spec import AttachedDevice, Device

logger = logging.getLogger(__name__)

_UNDO_TIMEOUT = 5.0


class Removal:
    """A device that the guest was asked to let go of."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.refused = False


class Removals:
    """Unplug requests under way, by QEMU id.

    Args:
        qmp: control connection.
        background: runs what waits for the guest after a caller stopped waiting.
    """

    def __init__(self, qmp: QmpClient, background: Background) -> None:
        self._qmp = qmp
        self._background = background
        self._pending: dict[str, Removal] = {}

    async def remove(
        self,
        name: str,
        timeout: float,
        after: Callable[[bool], Awaitable[None]],
        is_gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Unplug a device and wait until it is gone.

        Args:
            name: its QEMU id.
            timeout: seconds to wait; the removal goes on behind the scenes afterwards.
            after: run once it is gone (True), or the guest refused (False).
            is_gone: asked whenever the guest reports on an ACPI device, for what QEMU
                removes without an event (emulated CPUs).

        Raises:
            GuestTimeout: the guest has not let go, or refused to.
        """
        removal = self._pending.get(name)
        if removal is None:
            removal = self._pending[name] = Removal()
            subscription = self._qmp.subscribe()
            try:
                await self._request(name)
            except BaseException:
                del self._pending[name]
                subscription.__exit__(None, None, None)
                raise
            self._background.start_soon(self._settle, name, removal, subscription, after, is_gone)
        else:
            await self._request(name)
        with trio.move_on_after(timeout):
            await removal.settled.wait()
            if removal.refused:
                raise GuestTimeout(f"the guest refused to let go of {name}")
            return
        raise GuestTimeout(f"the guest has not let go of {name} within {timeout:g} s")

    async def _request(self, name: str) -> None:
        try:
            await self._qmp.execute("device_del", {"id": name})
        except ApiError as error:
            # Asked for before; the event is still to come.
            if name not in self._pending or error.kind == "DeviceNotFound":
                raise

    async def _settle(
        self,
        name: str,
        removal: Removal,
        subscription: Subscription[QmpEvent],
        after: Callable[[bool], Awaitable[None]],
        is_gone: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        with subscription:
            async for event in subscription:
                if event.name == "ACPI_DEVICE_OST" and is_gone is not None and await is_gone():
                    break
                if event.data.get("device") != name:
                    continue  # children of a device are reported by path only
                if event.name == "DEVICE_DELETED":
                    break
                if event.name in ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"):
                    removal.refused = True
                    break
            else:
                return  # the VM is gone, and everything with it
        del self._pending[name]
        try:
            await after(not removal.refused)
        except VmmError as error:
            logger.warning("after removing %s: %s", name, error)
        removal.settled.set()


class HotPlug:
    """Attaches and detaches devices.

    Args:
        qmp: control connection.
        plan: the VM's devices and free ports.
        removals: unplug requests.
        capabilities: what this VM can do.
        publish: takes events.
        rootless: QEMU may not open files of ours.
    """

    def __init__(
        self,
        qmp: QmpClient,
        plan: Plan,
        removals: Removals,
        capabilities: Capabilities,
        publish: Callable[[Event], None],
        *,
        rootless: bool,
    ) -> None:
        self._qmp = qmp
        self._plan = plan
        self._removals = removals
        self._capabilities = capabilities
        self._publish = publish
        self._rootless = rootless

    def require(self, device: Device) -> None:
        """Raise ``Unsupported`` unless this kind of device can be hot-plugged."""
        match device:
            case BlockDevice() | VhostUserBlockDevice():
                self._capabilities.require("block_hot", "q35 with hotplug_slots")
                if isinstance(device, VhostUserBlockDevice):
                    self._capabilities.require("fs_hot", "q35 with shared_memory")
            case VfioDevice():
                self._capabilities.require("vfio_hot", "q35 with hotplug_slots")
            case NetDevice():
                self._capabilities.require("net_hot", "q35 with hotplug_slots")
                if device.socket is not None:
                    self._capabilities.require("fs_hot", "q35 with shared_memory")
            case FsDevice():
                self._capabilities.require("fs_hot", "q35 with shared_memory")
            case PmemDevice():
                self._capabilities.require("pmem_hot")
            case _:
                kind = type(device).__name__
                raise Unsupported(f"hot-plug of a {kind}", "only at boot", self._capabilities.vmm)

    async def attach(self, device: Device, timeout: float) -> AttachedDevice:
        """See :meth:`vmm.hypervisor.Hypervisor.attach`."""
        self.require(device)
        # QEMU answers in milliseconds; being cancelled halfway would leave parts behind.
        with trio.move_on_after(timeout, shield=True):
            return await self._attach(device)
        raise ControlTimeout(f"QEMU did not attach {device.id} within {timeout:g} s")

    async def _attach(self, device: Device) -> AttachedDevice:
        names: list[str] = []
        placed: Placed | None = None
        undo: list[tuple[str, dict[str, Any]]] = []
        try:
            for fd in own_fds(device):
                names.append(await self._qmp.pass_fd(fd))  # noqa: PERF401 - undone one by one
            placed = self._plan.add_hot(device, tuple(names))
            for step in placed.recipe.steps:
                await self._take(step)
                if step.undo is not None:
                    undo.insert(0, step.undo)
        except ApiError:
            await self._roll_back(undo, names if not undo else [])
            if placed is not None:
                self._plan.release(placed)
            raise
        except VmmError:
            if placed is None:
                await self._roll_back([], names)
            raise
        return placed.handle

    async def _take(self, step: Step) -> None:
        arguments = step.arguments
        if not self._rootless or arguments.get("driver") != "raw":
            await self._qmp.execute(step.command, arguments)
            return
        # An image that this QEMU may not open itself: it gets the descriptor.
        file = arguments["file"]
        flags = os.O_RDONLY if arguments["read-only"] else os.O_RDWR
        flags |= os.O_DIRECT if "cache" in file else 0
        fd = os.open(file["filename"], flags | os.O_CLOEXEC)
        try:
            fdset = (await self._qmp.execute("add-fd", fds=(fd,)))["fdset-id"]
        finally:
            os.close(fd)
        try:
            opened = {**file, "filename": f"/dev/fdset/{fdset}"}
            await self._qmp.execute(step.command, {**arguments, "file": opened})
        finally:
            # The disk has its own copy.
            await self._qmp.execute("remove-fd", {"fdset-id": fdset})

    async def _roll_back(self, undo: list[tuple[str, dict[str, Any]]], names: list[str]) -> None:
        commands = [*undo, *(("closefd", {"fdname": name}) for name in names)]
        with trio.move_on_after(_UNDO_TIMEOUT, shield=True):
            for command, arguments in commands:
                try:
                    await self._qmp.execute(command, arguments)
                except VmmError as error:
                    logger.warning("undoing a failed attach: %s", error)

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """See :meth:`vmm.hypervisor.Hypervisor.detach`."""
        placed = self._find(handle)
        if not placed.handle.hot:
            raise Conflict(f"{handle.id} was there at boot and can't be detached")

        async def after(gone: bool) -> None:
            if gone:
                await self._release(placed)
            self._publish(DeviceRemoved(handle.id) if gone else DeviceRemoveFailed(handle.id))

        await self._removals.remove(placed.recipe.name, timeout, after)

    async def _release(self, placed: Placed) -> None:
        try:
            for command, arguments in placed.recipe.undo:
                await self._qmp.execute(command, arguments)
        finally:
            self._plan.release(placed)

    def _find(self, handle: AttachedDevice) -> Placed:
        placed = self._plan.placed.get(handle.id)
        if placed is None or placed.handle != handle:
            raise NotFound(f"no device {handle.id} is attached")
        return placed
