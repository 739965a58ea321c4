"""The disks that a pod's VM gets for volumes, whoever serves them.

Source: Kata's direct-assigned volumes (``directvol``, ``spdkvol``, ``vfiovol``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import trio

from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.errors import FailedPrecondition, InvalidArgument, NotFound
from shim.pod.vfio import require_hot_plug
from shim.pod.vfio_groups import function_at, vfio_device
from shim.pod.vm import PodVm
from shim.sockets import sha256_hex
from shim.storage.direct_volume import DirectVolume
from shim.storage.disk import make_filesystem
from shim.storage.disks import disk
from vmm.spec import AttachedDevice, Device, VfioDevice, VhostUserBlockDevice

DETACH_TIMEOUT_S = 10.0


class PodDisks:
    """Plugs disks into one pod's VM.

    Args:
        vm: the pod's VM.
        config: the effective configuration.
    """

    def __init__(self, vm: PodVm, config: Config) -> None:
        self._vm = vm
        self._config = config

    async def attach(self, name: str, path: str, read_only: bool, undo: Rollback) -> AttachedDevice:
        """Plug a block device or image file in.

        Args:
            name: of the disk, unique in the VM.
            path: device or file on the host.
            read_only: the guest may not write.
            undo: gets its removal.

        Raises:
            VmmError: the VM does not take it.
        """
        named = self._vm.hypervisor.capabilities.block_serial
        device = disk(
            self._config.hypervisor,
            name,
            path,
            read_only=read_only,
            serial=sha256_hex(os.fsencode(path))[:20] if named else "",
        )
        return await self._plug(device, path, undo)

    async def assign(
        self, name: str, volume: DirectVolume, read_only: bool, undo: Rollback
    ) -> AttachedDevice:
        """Plug the disk of a direct-assigned volume in. Args as :meth:`attach`.

        Only the VMM's own disks are read-only for the guest; of the others the mount is.

        Raises:
            NotFound, InvalidArgument: there is no such device, or it is of another kind.
            FailedPrecondition: the VM or the host is not set up for it.
            Internal: its file system can't be made.
            VmmError: the VM does not take it.
        """
        device: Device
        match volume.kind:
            case "block":
                if volume.create:
                    await trio.to_thread.run_sync(make_filesystem, volume.device)
                return await self.attach(name, volume.device, read_only, undo)
            case "vhost-user":
                device = await self._of_daemon(name, volume)
            case "vfio":
                device = await self._of_host(volume)
        return await self._plug(device, volume.device, undo)

    async def _of_daemon(self, name: str, volume: DirectVolume) -> VhostUserBlockDevice:
        what = f"volume {volume.path}: {volume.device}"
        try:
            found = await trio.Path(volume.device).stat()
        except OSError as error:
            raise NotFound(f"{what}: {error.strerror}") from error
        if not stat.S_ISSOCK(found.st_mode):
            raise InvalidArgument(f"{what} is no socket")
        if not self._vm.hypervisor.capabilities.fs_hot:
            raise FailedPrecondition(
                f"{what}: its server has to map the VM's memory: "
                f"[{self._config.hypervisor.section}] shared_fs = 'virtio-fs', and a machine "
                "that takes devices while it runs"
            )
        return VhostUserBlockDevice(name, Path(volume.device), volume.queues)

    async def _of_host(self, volume: DirectVolume) -> VfioDevice:
        require_hot_plug(self._config, f"volume {volume.path}")
        return vfio_device(await trio.to_thread.run_sync(function_at, volume.device))

    async def _plug(self, device: Device, what: str, undo: Rollback) -> AttachedDevice:
        vm = self._vm
        handle = await vm.hypervisor.attach(device)

        async def detach() -> None:
            await vm.detach(handle, DETACH_TIMEOUT_S)

        undo.push(f"disk {what}", detach, timeout=DETACH_TIMEOUT_S + 2)
        return handle
