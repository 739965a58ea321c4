"""Disks as the configuration wants them, and what the agent calls them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from shim.config.hypervisors import CloudHypervisor, Firecracker, Qemu
from vmm.spec import Aio, BlockDevice, RateLimit

if TYPE_CHECKING:
    from shim.config.hypervisors import AnyHypervisor

_SCSI_ADDRESS = re.compile(r"\d+:\d+")
_CCW_ADDRESS = re.compile(r"[0-9a-f]+\.[0-3]\.[0-9a-f]{4}")
_BITS = 8


def disk(
    vm: AnyHypervisor,
    device_id: str,
    path: str,
    *,
    read_only: bool,
    shared: bool = False,
    direct: bool = False,
    serial: str = "",
) -> BlockDevice:
    """Return the device for a disk of a pod.

    Args:
        vm: the hypervisor's configuration.
        device_id: name of the device, unique in the VM.
        path: image file or block device.
        read_only: the guest may not write.
        shared: several VMs may use it at once.
        direct: bypass the host's page cache, whatever is configured.
        serial: what the guest reads as serial number.
    """
    scsi = isinstance(vm, Qemu) and vm.block_device_driver == "virtio-scsi"
    made = BlockDevice(
        device_id,
        Path(path),
        read_only=read_only,
        direct=direct or vm.block_device_cache_direct,
        serial=serial,
        shared=shared,
        limit=rate_limit(vm),
        bus="scsi" if scsi else "virtio",
    )
    if isinstance(vm, (Qemu, Firecracker)):
        made = replace(
            made,
            aio=cast("Aio", vm.block_device_aio),
            flush=not vm.block_device_cache_noflush,
        )
    if isinstance(vm, (Qemu, CloudHypervisor)) and not scsi:
        made = replace(made, queues=vm.num_queues, queue_size=vm.queue_size)
    if isinstance(vm, Qemu):
        made = replace(
            made,
            logical_sector=vm.block_device_logical_sector_size,
            physical_sector=vm.block_device_physical_sector_size,
        )
    return made


def rate_limit(vm: AnyHypervisor) -> RateLimit | None:
    """Return the limit of each disk; Kata's keys count bits."""
    limit = RateLimit(
        vm.disk_rate_limiter_bw_max_rate // _BITS,
        vm.disk_rate_limiter_bw_one_time_burst // _BITS,
        vm.disk_rate_limiter_ops_max_rate,
        vm.disk_rate_limiter_ops_one_time_burst,
    )
    return None if limit == RateLimit() else limit


def agent_driver(address: str) -> str:
    """Return the agent's name for the kind of disk that is found at an address."""
    if _CCW_ADDRESS.fullmatch(address):
        return "blk-ccw"
    return "scsi" if _SCSI_ADDRESS.fullmatch(address) else "blk"
