"""Disks by configuration."""

from __future__ import annotations

import pytest

from shim.config.hypervisors import CloudHypervisor, Qemu
from shim.storage.disks import agent_driver, disk, rate_limit
from vmm.spec import CcwAddress, PciPath, RateLimit, ScsiAddress


def test_what_is_configured_counts() -> None:
    vm = Qemu(block_device_driver="virtio-scsi", block_device_cache_direct=True)
    made = disk(vm, "a", "/disk", read_only=True, serial="s")
    assert (made.bus, made.direct, made.read_only, made.serial) == ("scsi", True, True, "s")
    plain = disk(CloudHypervisor(), "a", "/disk", read_only=False)
    assert (plain.bus, plain.direct, plain.limit) == ("virtio", False, None)
    assert disk(Qemu(), "a", "/disk", read_only=False, direct=True).direct


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
