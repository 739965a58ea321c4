"""The direct-assigned volumes a pod uses: their sizes, and growing them while in use.

Source: Kata docs/design/direct-blk-device-assignment.md; CSI NodeGetVolumeStats and
NodeExpandVolume.
"""

from __future__ import annotations

import os

import trio

from protos.kata import csi_pb2
from shim.errors import InvalidArgument, NotFound, Unimplemented
from shim.pod.vm import PodVm
from shim.storage.disk import size_of
from vmm.spec import AttachedDevice, BlockDevice


class DirectVolumes:
    """The direct-assigned volumes that a pod uses, for whoever asks about them.

    Args:
        sandbox_id: the pod's id.
        address: where the shim is reached about them.
    """

    def __init__(self, sandbox_id: str, address: str) -> None:
        self.sandbox_id = sandbox_id
        self.address = address
        self._used: dict[str, tuple[str, AttachedDevice, PodVm]] = {}

    def add(self, volume_path: str, point: str, handle: AttachedDevice, vm: PodVm) -> None:
        """Take one in that is mounted at ``point`` in the guest."""
        self._used[volume_path] = (point, handle, vm)

    def remove(self, volume_path: str) -> None:
        """Forget one. Idempotent."""
        self._used.pop(volume_path, None)

    async def stats(self, volume_path: str) -> csi_pb2.VolumeStatsResponse:
        """Sizes of one as the guest sees them.

        Raises:
            NotFound: the pod does not use it.
        """
        point, _, vm = self._find(volume_path)
        return await vm.agent.volume_stats(point)

    async def resize(self, volume_path: str, size: int) -> None:
        """Grow one, disk and file system, while it is in use.

        Args:
            volume_path: its path on the host.
            size: bytes; an image file grows with it, a device has to have them.

        Raises:
            NotFound: the pod does not use it.
            Unimplemented: another process or a PCI device has it.
            InvalidArgument: it is to shrink, or the device is smaller than that.
            Unsupported: the VMM can't tell the guest of a new size.
        """
        point, handle, vm = self._find(volume_path)
        if not isinstance(handle.device, BlockDevice):
            raise Unimplemented(f"volume {volume_path} is not the VMM's own disk, to be resized")
        path = str(handle.device.path)
        now, is_file = await trio.to_thread.run_sync(size_of, path)
        if size < now:
            raise InvalidArgument(
                f"volume {volume_path} has {now} bytes and can't shrink to {size}"
            )
        if size > now and not is_file:
            raise InvalidArgument(
                f"volume {volume_path}: {path} has {now} bytes; grow the device first"
            )
        await vm.hypervisor.resize_block(handle, size)
        await vm.agent.resize_volume(point, size)

    def _find(self, volume_path: str) -> tuple[str, AttachedDevice, PodVm]:
        try:
            return self._used[os.path.normpath(volume_path)]
        except KeyError:
            raise NotFound(
                f"pod {self.sandbox_id} has no direct-assigned volume {volume_path}"
            ) from None
