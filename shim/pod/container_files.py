"""A container's files on their way into the guest: its root file system and its volumes.

What can be a disk is attached to the VM; everything else is shared as a directory.
Each thing is pushed on the container's rollback stack before it is made.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from protos.kata import agent_pb2
from shim.cleanup.ledger import Ledger
from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.errors import KatapyError
from shim.log import Log
from shim.oci.devices import host_disks
from shim.oci.mounts import follow_guest, host_mounts
from shim.pod.vfio import LEFT_TO_CONTAINER, PodVfio
from shim.pod.vm import PodVm
from shim.pod.volumes import PodVolumes
from shim.requests import CreateContainer
from shim.sockets import sha256_hex
from shim.storage.disk import block_device_path
from shim.storage.disks import agent_driver, disk
from shim.storage.layers import resolve
from shim.storage.options import Mount
from shim.storage.pack import Packing
from shim.storage.rootfs import BlockRootfs, LayeredRootfs, PackedRootfs, plan_rootfs
from shim.storage.share import GUEST_SHARE, Share
from shim.ttrpc.connection import ConnectionClosed
from shim.ttrpc.status import TtrpcError

DETACH_TIMEOUT_S = 10.0
SHARE_TIMEOUT_S = 30.0
RETURN_TIMEOUT_S = 10.0
GUEST_STORAGE = "/run/kata-containers/sandbox/storage"
OVERLAY_RW = "io.katacontainers.fs-opt.overlay-rw"
"""Has the agent keep an overlay's changes in its memory, in the container's own folder."""


@dataclass(slots=True)
class ContainerVolumes:
    """A container's volumes as they are in the guest.

    Attributes:
        sources: guest path by a mount's place in the spec; None for one that is a disk.
        storages: mounts the agent makes first.
        devices: what the agent waits for; disks' numbers it puts into the spec.
        numbers: path in the container to a stand-in for those numbers.
        copies: bring files back that the container could write, and only in the guest.
    """

    sources: dict[int, str | None] = field(default_factory=dict)
    storages: list[agent_pb2.Storage] = field(default_factory=list)
    devices: list[agent_pb2.Device] = field(default_factory=list)
    numbers: dict[str, tuple[int, int]] = field(default_factory=dict)
    copies: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def add_disk(self, path: str, place: str) -> None:
        """Give the container a disk as the device node ``path``."""
        self.keep_node(path)
        self.devices.append(
            agent_pb2.Device(id=place, type=agent_driver(place), container_path=path)
        )

    def keep_node(self, path: str) -> None:
        """Leave the container its node at a path, for the agent to put the numbers in."""
        # Major 0 is no device's, so a stand-in never is another disk's real number.
        self.numbers[path] = (0, len(self.numbers) + 1)

    async def bring_back(self, log: Log) -> None:
        """Have the host's files be as the container that has ended left them."""
        with trio.move_on_after(RETURN_TIMEOUT_S) as scope:
            for bring_back in self.copies:
                try:
                    await bring_back()
                except (KatapyError, TtrpcError, ConnectionClosed) as error:
                    log.warning(f"a file that was copied into the guest stays there: {error}")
        if scope.cancelled_caught:
            log.warning(f"copied files were not brought back within {RETURN_TIMEOUT_S:g} s")


class ContainerFiles:
    """Brings files of the host into one pod's VM.

    Args:
        config: the effective configuration.
        vm: the pod's VM.
        share: the pod's shared directory; None when it has none.
        volumes: the pod's volumes.
        vfio: the host's PCI devices in it.
        ledger: takes what is made before it is.
    """

    def __init__(
        self,
        config: Config,
        vm: PodVm,
        share: Share | None,
        volumes: PodVolumes,
        vfio: PodVfio,
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self._config = config
        self._vm = vm
        self._share = share
        self._volumes = volumes
        self._vfio = vfio

    async def add_rootfs(
        self, request: CreateContainer, spec: dict[str, Any], cleanup: Rollback
    ) -> tuple[list[agent_pb2.Storage], str]:
        """Bring the root file system into the guest; its storages and its path there.

        Raises:
            InvalidArgument, Unimplemented: there is no way for it into the guest.
            VmmError: the VM does not take the disk.
        """
        root = os.path.join(request.bundle, spec["root"]["path"])
        capabilities = self._vm.hypervisor.capabilities
        plan = plan_rootfs(
            [Mount(m.type, m.source, m.target, m.options) for m in request.rootfs],
            root,
            can_share=self._share is not None,
            can_attach=capabilities.block_hot != "none"
            and not self._config.hypervisor.disable_block_device_use,
        )
        if isinstance(plan, BlockRootfs):
            return await self._attach_rootfs(request.container_id, plan, cleanup)
        if isinstance(plan, LayeredRootfs):
            return await self._attach_layers(request.container_id, plan, cleanup)
        if isinstance(plan, PackedRootfs):
            return await self._pack_rootfs(request.container_id, plan, cleanup)
        assert self._share is not None
        share = self._share
        cleanup.push(
            "the shared files",
            lambda: share.remove(request.container_id),
            timeout=SHARE_TIMEOUT_S,
        )
        return [], await share.add_rootfs(request.container_id, plan)

    async def _attach_rootfs(
        self, container_id: str, plan: BlockRootfs, cleanup: Rollback
    ) -> tuple[list[agent_pb2.Storage], str]:
        device_id = _device_id(container_id)
        path = (
            f"{GUEST_SHARE}/{container_id}/rootfs"
            if self._share is None
            else f"{GUEST_STORAGE}/{device_id}"
        )
        return [await self._attach_disk(device_id, plan, path, cleanup)], path

    async def _attach_layers(
        self, container_id: str, plan: LayeredRootfs, cleanup: Rollback
    ) -> tuple[list[agent_pb2.Storage], str]:
        """Attach a disk for each layer; the guest stacks them."""
        base = _device_id(container_id)
        points = [f"{GUEST_STORAGE}/{base}-{number}" for number in range(len(plan.disks))]
        overlay, directories = resolve(plan.overlay, points)
        storages = [
            await self._attach_disk(f"{base}-{number}", layer, points[number], cleanup)
            for number, layer in enumerate(plan.disks)
        ]
        storages += [
            agent_pb2.Storage(
                driver="local",
                source="local",
                options=[f"mode={directory.mode:04o}"],
                mount_point=directory.path,
            )
            for directory in directories
        ]
        path = f"{GUEST_STORAGE}/{base}"
        storages.append(
            agent_pb2.Storage(
                driver="overlayfs",
                source="overlay",
                fstype="overlay",
                options=overlay.options,
                driver_options=[OVERLAY_RW] if plan.in_memory else [],
                mount_point=path,
            )
        )
        return storages, path

    async def _attach_disk(
        self, device_id: str, plan: BlockRootfs, path: str, cleanup: Rollback
    ) -> agent_pb2.Storage:
        """Attach one disk, which the agent is to mount at ``path``."""
        vm = self._vm
        handle = await vm.hypervisor.attach(
            disk(
                self._config.hypervisor,
                device_id,
                plan.path,
                read_only=plan.read_only,
                direct=plan.direct_io,
                shared=plan.read_only,
            )
        )

        async def detach() -> None:
            await vm.detach(handle, DETACH_TIMEOUT_S)

        cleanup.push(f"disk {plan.path}", detach, timeout=DETACH_TIMEOUT_S + 2)
        return agent_pb2.Storage(
            driver=agent_driver(str(handle.address)),
            source=str(handle.address),
            fstype=plan.fstype,
            options=plan.options,
            mount_point=path,
        )

    async def _pack_rootfs(
        self, container_id: str, plan: PackedRootfs, cleanup: Rollback
    ) -> tuple[list[agent_pb2.Storage], str]:
        """Attach a copy as a read-only disk, under a layer of the guest's memory."""
        name = _device_id(f"{self._vm.hypervisor.spec.name}/{container_id}")
        packing = Packing(
            str(self._config.katapy.cache_dir / "rootfs" / name), self._ledger, container_id
        )
        cleanup.push("the packed rootfs", packing.aclose, timeout=SHARE_TIMEOUT_S)
        image = await packing.pack(plan)
        disk = BlockRootfs(image, "erofs", True, True, False, ("ro",))
        storages, lower = await self._attach_rootfs(container_id, disk, cleanup)
        path = f"{lower}-rw"
        overlay = agent_pb2.Storage(
            driver="overlayfs",
            source="overlay",
            fstype="overlay",
            options=[f"lowerdir={lower}"],
            driver_options=[OVERLAY_RW],
            mount_point=path,
        )
        return [*storages, overlay], path

    async def add_volumes(self, spec: dict[str, Any], cleanup: Rollback) -> ContainerVolumes:
        """Bring the sources of the spec's bind mounts, and its devices, into the guest.

        Raises:
            Unimplemented: there is no way for one of them into this VM.
            NotFound, InvalidArgument: there is no such source, or it can't be brought in.
            FailedPrecondition: a PCI device of the host is not free, or not to be given.
            VmmError: the VM does not take a device.
        """
        volumes = ContainerVolumes()
        for mount in host_mounts(spec):
            placed = await self._volumes.add(mount, cleanup)
            volumes.storages += placed.storages
            volumes.sources[mount.index] = placed.path or None
            if placed.guarded:
                # One file system in the guest, whatever is mounted below it on the host.
                entry = spec["mounts"][mount.index]
                entry["options"] = [word for word in entry["options"] if word != "ro"]
            if placed.follows:
                follow_guest(spec, mount.index)
            if placed.bring_back is not None and not mount.readonly:
                volumes.copies.append(placed.bring_back)
            if placed.disk:
                volumes.add_disk(mount.destination, placed.disk)
        for device in host_disks(spec):
            find = partial(block_device_path, device.major, device.minor, device.path)
            path = await trio.to_thread.run_sync(find)
            placed = await self._volumes.add_disk(path, cleanup, read_only=not device.writable)
            volumes.add_disk(device.path, placed.disk)
        for passed in await self._vfio.add(spec, cleanup):
            volumes.devices.append(passed)
            if passed.type == LEFT_TO_CONTAINER:
                volumes.keep_node(passed.container_path)
        return volumes


def _device_id(container_id: str) -> str:
    """A device name for a container's root disk, short and of safe characters."""
    return f"rootfs-{sha256_hex(container_id.encode())[:12]}"
