"""The walk over capabilities and methods for Firecracker and Cloud Hypervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.kata import agent_pb2
from tests.integration.agent.conftest import LIMIT
from tests.integration.vmm.standins import (
    Standins,
    Vm,
    booted,
    image,
    newer_qemu,
    standins,
)
from tests.integration.vmm.test_capabilities import calls, check
from vmm.errors import Unsupported
from vmm.spec import MIB, BlockDevice, NinePDevice, RngDevice, SerialDevice
from vmm.virtiofsd import run_virtiofsd

__all__ = ["image", "newer_qemu", "standins"]  # fixtures

pytestmark = [pytest.mark.vm, pytest.mark.root]


def made_by(what: str, standins: Standins, cold: Path, qemu: Path) -> Vm:
    """A VM that asks for all its version has, or for nothing."""
    vmm, version, *rest = what.split()
    devices = (*standins.spec.devices, BlockDevice("cold", cold))
    if "bare" in rest:
        spec = {"devices": (BlockDevice("cold", cold),), "hotplug_slots": 0}
    else:
        spec = {"devices": devices}
        if version != "1.12.1":
            spec["max_memory_bytes"] = 512 * MIB
    if vmm == "firecracker":
        return standins.firecracker(version, pci="pci" in rest, spec=spec)
    if "bare" not in rest:
        spec |= {"max_vcpus": 2, "shared_memory": True}
    return standins.cloud_hypervisor(version, spec=spec, qemu=qemu)


@pytest.mark.parametrize(
    "what",
    [
        "firecracker 1.12.1",
        "firecracker 1.14.1",
        "firecracker 1.16.1 pci",
        "firecracker 1.17.0 bare",
        "clh 46.0",
        "clh 53.0",
        "clh 53.0 bare",
    ],
)
async def test_walk(what: str, standins: Standins, tmp_path: Path, newer_qemu: Path) -> None:
    cold, disk = tmp_path / "cold.img", tmp_path / "disk.img"
    cold.write_bytes(bytes(8 * MIB))
    disk.write_bytes(bytes(8 * MIB))
    disk.with_name("pmem.img").write_bytes(bytes(8 * MIB))
    socket = standins.spec.runtime_dir / "fs.sock"
    async with (
        run_virtiofsd(tmp_path, socket),
        booted(made_by(what, standins, cold, newer_qemu)) as (vm, guest),
    ):
        # A CPU goes last: QEMU 10 behind a vhost-user device stops answering once in some 25
        # times after one that it emulates is gone.
        walk = calls(vm, disk, tmp_path / "target", socket)
        walk["vcpu_down"] = walk.pop("vcpu_down")
        for name, call in walk.items():
            await check(vm, name, call)
            if name == "vcpu_up" and vm.capabilities.vcpu_up:
                request = agent_pb2.OnlineCPUMemRequest(nb_cpus=2, cpu_only=True)
                await guest.agent.OnlineCPUMem(request, timeout=LIMIT)
        for device in (RngDevice("r"), NinePDevice("n", "t", tmp_path), SerialDevice("s", "s")):
            with pytest.raises(Unsupported, match="only at boot"):
                await vm.attach(device)
