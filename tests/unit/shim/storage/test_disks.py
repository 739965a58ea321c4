"""Disks by configuration."""

from __future__ import annotations

from typing import Any

import pytest

from shim.config.hypervisors import CloudHypervisor, Firecracker, Qemu
from shim.storage.disks import agent_driver, disk, rate_limit
from vmm.spec import CcwAddress, PciPath, RateLimit, ScsiAddress


def test_what_is_configured_counts() -> None:
    vm = Qemu(block_device_driver="virtio-scsi", block_device_cache_direct=True)
    made = disk(vm, "a", "/disk", read_only=True, serial="s")
    assert (made.bus, made.direct, made.read_only, made.serial) == ("scsi", True, True, "s")
    plain = disk(CloudHypervisor(), "a", "/disk", read_only=False)
    assert (plain.bus, plain.direct, plain.limit) == ("virtio", False, None)
    assert disk(Qemu(), "a", "/disk", read_only=False, direct=True).direct


def test_how_disks_are_read_and_written() -> None:
    queues: dict[str, Any] = {"num_queues": 2, "queue_size": 256}
    sectors: dict[str, Any] = {
        "block_device_logical_sector_size": 4096,
        "block_device_physical_sector_size": 8192,
    }
    ways: dict[str, Any] = {"block_device_aio": "io_uring", "block_device_cache_noflush": True}
    made = disk(Qemu(**queues, **sectors, **ways), "a", "/disk", read_only=False)
    assert (made.queues, made.queue_size) == (2, 256)
    assert (made.logical_sector, made.physical_sector) == (4096, 8192)
    assert (made.aio, made.flush) == ("io_uring", False)
    scsi = Qemu(block_device_driver="virtio-scsi", **queues, **sectors)
    made = disk(scsi, "a", "/disk", read_only=False)
    # The queues of a SCSI disk are its controller's.
    assert (made.queues, made.queue_size, made.logical_sector) == (0, 0, 4096)
    made = disk(CloudHypervisor(**queues), "a", "/disk", read_only=False)
    assert (made.queues, made.queue_size, made.aio, made.flush) == (2, 256, "auto", True)
    made = disk(Firecracker(**ways), "a", "/disk", read_only=False)
    assert (made.aio, made.flush, made.queues) == ("io_uring", False, 0)


def test_limits_are_in_bits() -> None:
    vm = Qemu(disk_rate_limiter_bw_max_rate=8000, disk_rate_limiter_ops_one_time_burst=5)
    assert rate_limit(vm) == RateLimit(bytes_per_second=1000, ops_burst=5)


@pytest.mark.parametrize(
    ("address", "driver"),
    [
        (str(ScsiAddress(3, 0)), "scsi"),
        (str(PciPath(((2, 0), (0, 0)))), "blk"),
        (str(CcwAddress(0x101)), "blk-ccw"),
        ("/dev/vdb", "blk"),
    ],
)
def test_the_agent_s_name_follows_the_address(address: str, driver: str) -> None:
    assert agent_driver(address) == driver
