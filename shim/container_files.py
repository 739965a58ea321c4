"""A container's files on their way into the guest: its root file system and its volumes.

What can be a disk is attached to the VM; everything else is shared as a directory.
Each thing is pushed on the container's rollback stack before it is made.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from protos.kata import agent_pb2
from shim.config.model import Config
from shim.errors import Unimplemented
from shim.oci.mounts import host_mounts
from shim.pod_vm import PodVm
from shim.requests import CreateContainer
from shim.rollback import Rollback
from shim.sockets import sha256_hex
from shim.storage.options import Mount
from shim.storage.rootfs import BlockRootfs, plan_rootfs
from shim.storage.share import GUEST_SHARE, Share
from vmm.spec import BlockDevice

DETACH_TIMEOUT_S = 10.0
SHARE_TIMEOUT_S = 30.0
GUEST_STORAGE = "/run/kata-containers/sandbox/storage"


class ContainerFiles:
    """Brings files of the host into one pod's VM.

    Args:
        config: the effective configuration.
        vm: the pod's VM.
        share: the pod's shared directory; None when it has none.
    """

    def __init__(self, config: Config, vm: PodVm, share: Share | None) -> None:
        self._config = config
        self._vm = vm
        self._share = share

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
            can_attach=capabilities.block_hot == "add_remove"
            and not self._config.hypervisor.disable_block_device_use,
        )
        if isinstance(plan, BlockRootfs):
            return await self._attach_rootfs(request.container_id, plan, cleanup)
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
        vm = self._vm
        device_id = _device_id(container_id)
        handle = await vm.hypervisor.attach(
            BlockDevice(
                device_id,
                Path(plan.path),
                read_only=plan.read_only,
                direct=plan.direct_io or self._config.hypervisor.block_device_cache_direct,
                shared=plan.read_only,
            )
        )

        async def detach() -> None:
            if not vm.gone.is_set() and not vm.hypervisor.exited.is_set():
                await vm.hypervisor.detach(handle, DETACH_TIMEOUT_S)

        cleanup.push(f"disk {plan.path}", detach, timeout=DETACH_TIMEOUT_S + 2)
        path = (
            f"{GUEST_SHARE}/{container_id}/rootfs"
            if self._share is None
            else f"{GUEST_STORAGE}/{device_id}"
        )
        storage = agent_pb2.Storage(
            driver="blk",
            source=str(handle.address),
            fstype=plan.fstype,
            options=plan.options,
            mount_point=path,
        )
        return [storage], path

    async def add_volumes(
        self, container_id: str, spec: dict[str, Any], cleanup: Rollback
    ) -> dict[int, str]:
        """Share the spec's bind mounts; their guest paths by their place in the spec.

        Raises:
            Unimplemented: this VM shares no directories.
            NotFound, InvalidArgument: there is no such source, or it can't be shared.
        """
        wanted = host_mounts(spec)
        if not wanted:
            return {}
        share = self._share
        if share is None:
            raise Unimplemented(
                f"container {container_id}: {wanted[0].destination} is a mount of the host, "
                "and shared_fs = 'none' shares none"
            )
        cleanup.push(
            "the shared volumes", lambda: share.remove(container_id), timeout=SHARE_TIMEOUT_S
        )
        return {
            mount.index: await share.add_volume(
                container_id, mount.source, read_only=mount.readonly, recursive=mount.recursive
            )
            for mount in wanted
        }


def _device_id(container_id: str) -> str:
    """A device name for a container's root disk, short and of safe characters."""
    return f"rootfs-{sha256_hex(container_id.encode())[:12]}"
