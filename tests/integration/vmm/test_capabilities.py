"""Each capability against its method: what is claimed works, what is not says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.vmm.conftest import Boot
from tests.unit.vmm.test_capability_walk import METHODS
from vmm.errors import ApiError, Unsupported
from vmm.hypervisor import Hypervisor
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    FsDevice,
    NetDevice,
    NinePDevice,
    PmemDevice,
    RngDevice,
    SerialDevice,
    VfioDevice,
    VmSpec,
)
from vmm.virtiofsd import run_virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.root]

MAC = "02:00:00:00:00:01"

Call = Callable[[], Awaitable[object]]


def calls(vm: Hypervisor, disk: Path, target: Path, socket: Path) -> dict[str, Call]:
    """The method that each capability stands for, in an order that can be walked."""

    async def pause() -> None:
        await vm.pause()
        await vm.resume()

    async def snapshot() -> None:
        target.mkdir(exist_ok=True)
        if share := vm.devices.get("fs"):
            await vm.detach(share, 10)
        await vm.pause()
        try:
            await vm.snapshot(target)
        finally:
            await vm.resume()

    return {
        "block_hot": lambda: vm.attach(BlockDevice("hot", disk)),
        "block_resize": lambda: vm.resize_block(vm.devices["cold"], 16 << 20),
        "net_hot": lambda: vm.attach(NetDevice("net", MAC, tap="kit-caps")),
        "fs_hot": lambda: vm.attach(FsDevice("fs", "tag", socket)),
        "vcpu_up": lambda: vm.resize_vcpus(2, 10),
        "vcpu_down": lambda: vm.resize_vcpus(1, 10),
        "mem_up": lambda: vm.resize_memory(384 * MIB, 20),
        "mem_down": lambda: vm.resize_memory(256 * MIB, 20),
        "balloon": lambda: vm.set_balloon(200 * MIB),
        "pause": pause,
        "snapshot": snapshot,
        "rate_limit": lambda: vm.set_rate_limit(vm.devices["cold"], None),
        "counters": vm.counters,
        "pmem_hot": lambda: vm.attach(PmemDevice("pmem", disk.with_name("pmem.img"))),
        "vfio_hot": lambda: vm.attach(VfioDevice("vfio", "0000:00:00.0")),
    }


async def check(vm: Hypervisor, name: str, call: Call) -> None:
    """What is claimed works, what is not says so, naming the VMM."""
    claimed = vm.capabilities.has(name)
    if name == "vfio_hot" and claimed:  # there is no device to try it with
        with pytest.raises(ApiError):
            await call()
        return
    if name == "rate_limit":  # a static one can't be changed
        claimed = vm.capabilities.rate_limit == "dynamic"
    if claimed:
        await call()
        return
    with pytest.raises(Unsupported, match=vm.capabilities.vmm):
        await call()


def test_no_capability_is_forgotten(spec: VmSpec) -> None:
    # The other flags are planned or seen: unit/vmm/test_capability_walk.py.
    assert set(calls(QemuHypervisor(spec), Path(), Path(), Path())) == METHODS


@pytest.mark.parametrize("machine", ["q35 that can all", "q35 that can't grow", "microvm"])
async def test_walk(
    machine: str, spec: VmSpec, boot: Boot, disk: Path, tmp_path: Path, qemu_program: Path
) -> None:
    cold = tmp_path / "cold.img"
    cold.write_bytes(bytes(8 << 20))
    disk.with_name("pmem.img").write_bytes(bytes(8 << 20))
    devices = (*spec.devices, BlockDevice("cold", cold))
    if machine == "q35 that can all":
        spec = replace(
            spec,
            max_vcpus=2,
            max_memory_bytes=512 * MIB,
            shared_memory=True,
            devices=(*devices, BalloonDevice()),
        )
    else:
        slots = 0
        spec = replace(spec, machine=machine.split()[0], hotplug_slots=slots, devices=devices)
    socket = spec.runtime_dir / "fs.sock"
    async with (
        run_virtiofsd(tmp_path, socket),
        boot(spec, binary=qemu_program) as (vm, shell),
    ):
        for name, call in calls(vm, disk, tmp_path / "target", socket).items():
            if name == "vcpu_down" and vm.capabilities.vcpu_up:
                # What was not switched on yet may not be asked back either.
                await shell.until("[ -d /sys/devices/system/cpu/cpu1 ]")
            await check(vm, name, call)
        for device in (RngDevice("r"), NinePDevice("n", "t", tmp_path), SerialDevice("s", "s")):
            with pytest.raises(Unsupported, match="only at boot"):
                await vm.attach(device)
