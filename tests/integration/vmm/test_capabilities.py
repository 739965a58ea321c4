"""Each capability against its method: what is claimed works, what is not says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.integration.vmm.conftest import Boot
from vmm.errors import Unsupported
from vmm.hypervisor import Capabilities, Hypervisor
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    FsDevice,
    NetDevice,
    NinePDevice,
    RngDevice,
    SerialDevice,
    VmSpec,
)
from vmm.virtiofsd import run_virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.root]

MAC = "02:00:00:00:00:01"

# What no method stands for: facts about the VM, or what the spec alone decides.
NO_METHOD = {
    *("transport", "max_vcpus", "max_devices", "ninep", "fs_share", "mem_granule", "mem_max"),
    *("multi_queue", "nic_by_fd", "free_page_reporting", "restore_overrides", "lazy_restore"),
    *("vsock", "serial_agent", "console", "initrd", "firmware", "pmem_cold", "vfio_cold"),
    *("pmem_hot", "vfio_hot", "hugepages", "guest_rescan_needed", "block_serial"),
    *("guest_remove_first", "event_stream", "reset_semantics", "guest_panic_event"),
    *("acpi_shutdown", "jail", "rootless", "seccomp", "live_migration", "vmm", "why_not"),
}

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
        "net_hot": lambda: vm.attach(NetDevice("net", MAC, tap="kcaps0")),
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
    }


async def check(vm: Hypervisor, name: str, call: Call) -> None:
    """What is claimed works, what is not says so, naming the VMM."""
    claimed = vm.capabilities.has(name)
    if name == "rate_limit":  # a static one can't be changed
        claimed = vm.capabilities.rate_limit == "dynamic"
    if claimed:
        await call()
        return
    with pytest.raises(Unsupported, match=vm.capabilities.vmm):
        await call()


def test_no_capability_is_forgotten(spec: VmSpec) -> None:
    walked = set(calls(QemuHypervisor(spec), Path(), Path(), Path()))
    assert walked | NO_METHOD == {field.name for field in fields(Capabilities)}
    assert not walked & NO_METHOD


@pytest.mark.parametrize("machine", ["q35 that can all", "q35 that can't grow", "microvm"])
async def test_walk(
    machine: str, spec: VmSpec, boot: Boot, disk: Path, tmp_path: Path, qemu_program: Path
) -> None:
    cold = tmp_path / "cold.img"
    cold.write_bytes(bytes(8 << 20))
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
