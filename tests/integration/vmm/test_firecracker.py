"""Firecracker VMs, from boot to end, on each way of hot-plug."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from protos.katapy import extension_pb2
from tests.integration.agent.conftest import LIMIT
from tests.integration.vmm.standins import (
    Standins,
    agent_of,
    booted,
    erofs_disk,
    image,
    mount,
    seen,
    shell,
    standins,
)
from vmm.errors import ApiError, Conflict, GuestTimeout, LimitExceeded, NotFound, Unsupported
from vmm.events import DeviceRemoved, ExitCause, Exited, StateChanged, VmState
from vmm.firecracker.jail import Jailer, own_uid
from vmm.firecracker.launch import vm_id
from vmm.mounts import mounted_below
from vmm.spec import MIB, BlockDevice, DeviceNode, PciPath, PmemDevice, RateLimit

__all__ = ["erofs_disk", "image", "standins"]  # fixtures

pytestmark = [pytest.mark.vm, pytest.mark.root]


async def test_placeholders(standins: Standins, erofs_disk: Path) -> None:
    """A disk on a placeholder works in the guest, is let go of and used again."""
    recorded: list[tuple[str, str | int]] = []
    made = standins.firecracker("1.12.1", record=lambda kind, value: recorded.append((kind, value)))
    async with booted(made) as (vm, guest):
        assert ("process", vm.pid) in recorded
        assert vm.capabilities.block_hot == "swap"
        disk = BlockDevice("root", erofs_disk, read_only=True, limit=RateLimit(ops_per_second=5000))
        handle = await vm.attach(disk)
        assert handle.address == DeviceNode("/dev/vdc")
        await mount(guest, handle)
        assert await shell(guest, "echo fine") == "fine\n"
        other = await vm.attach(BlockDevice("other", erofs_disk, read_only=True))
        with pytest.raises(LimitExceeded, match="2 read-only placeholder"):
            await vm.attach(BlockDevice("third", erofs_disk, read_only=True))
        with vm.subscribe() as events:
            await vm.detach(other, 5)
            await seen(events, DeviceRemoved("other"))
        with pytest.raises(NotFound):
            await vm.detach(other, 5)
        with pytest.raises(Conflict, match="was there at boot"):
            await vm.detach(vm.devices["image"], 5)
        again = await vm.attach(BlockDevice("third", erofs_disk, read_only=True))
        assert again.address == other.address


async def test_pci_hot_plug(standins: Standins, erofs_disk: Path) -> None:
    """With PCI the guest finds a disk by a rescan, and lets go of it before it is taken."""
    async with booted(standins.firecracker("1.16.1", pci=True)) as (vm, guest):
        assert vm.capabilities.guest_rescan_needed
        assert vm.capabilities.guest_remove_first
        handle = await vm.attach(BlockDevice("root", erofs_disk, read_only=True))
        assert isinstance(handle.address, PciPath)
        await mount(guest, handle)
        assert await shell(guest, "echo fine") == "fine\n"
        other = await vm.attach(BlockDevice("other", erofs_disk, read_only=True))
        await vm.attach(PmemDevice("pmem", erofs_disk, read_only=True))
        request = extension_pb2.RemoveDeviceRequest(pci_path=str(other.address))
        await guest.extension.RemoveDevice(request, timeout=LIMIT)
        await vm.detach(other, 10)
        assert set(vm.devices) == {"image", "rng", "balloon", "vsock", "root", "pmem"}
        again = await vm.attach(BlockDevice("again", erofs_disk, read_only=True))
        assert again.address == other.address


async def test_memory_grows_and_shrinks(standins: Standins) -> None:
    made = standins.firecracker("1.14.1", spec={"max_memory_bytes": 768 * MIB})
    async with booted(made) as (vm, _):
        grown = await vm.resize_memory(512 * MIB + 1, 30)
        assert grown.actual == 514 * MIB
        shrunk = await vm.resize_memory(256 * MIB, 30)
        assert shrunk.actual == 256 * MIB
        await vm.set_balloon(200 * MIB)
        counters = await vm.counters()
        assert "image" in counters
        own = await vm.own_counters()
        assert own["vmm"]["panic_count"] == 0
        assert not [group for group in own if group.startswith("block_")]
        with pytest.raises(Unsupported, match=r"Firecracker 1\.14\.1.*vcpu_up"):
            await vm.resize_vcpus(2, 1)


async def test_limits_and_sizes_change_at_run_time(standins: Standins, tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    cold.write_bytes(bytes(MIB))
    devices = (*standins.spec.devices, BlockDevice("cold", cold))
    async with booted(standins.firecracker(spec={"devices": devices})) as (vm, _):
        await vm.set_rate_limit(vm.devices["cold"], RateLimit(bytes_per_second=MIB))
        await vm.set_rate_limit(vm.devices["cold"], None)
        await vm.resize_block(vm.devices["cold"], 2 * MIB)
        assert cold.stat().st_size == 2 * MIB


@pytest.mark.parametrize("version", ["1.16.1", "1.17.0"])
async def test_pause_and_connections(standins: Standins, version: str) -> None:
    """The connection from before a pause goes on; a new one needs 1.17."""
    async with booted(standins.firecracker(version)) as (vm, guest):
        with vm.subscribe() as events:
            await vm.pause()
            await seen(events, StateChanged(VmState.PAUSED))
            await vm.resume()
            await seen(events, StateChanged(VmState.RUNNING))
        await guest.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)
        if version == "1.16.1":
            with pytest.raises(Unsupported, match=r"1\.17 or later"):
                await vm.dial_agent(1)
        else:
            async with agent_of(vm) as second:
                await second.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)


async def test_the_end_is_seen(standins: Standins) -> None:
    async with booted(standins.firecracker()) as (vm, _):
        with vm.subscribe() as events:
            trio.lowlevel.spawn_system_task(_kill, vm.pid)
            with trio.fail_after(10):
                async for event in events:
                    if isinstance(event, Exited):
                        assert event.reason.cause is ExitCause.HOST_SIGNAL
                        break
    assert vm.state is VmState.EXITED


async def _kill(pid: int) -> None:
    import os

    os.kill(pid, signal.SIGKILL)


async def test_a_guest_without_an_agent(standins: Standins) -> None:
    made = standins.firecracker(spec={"cmdline": "quiet root=/dev/none panic=0", "initrd": None})
    async with made as vm:
        await vm.boot()
        with pytest.raises(GuestTimeout, match="did not answer within 1 s"):
            await vm.dial_agent(1)


async def test_a_refusal_ends_in_a_typed_error(standins: Standins) -> None:
    bad = replace(standins.spec, devices=(BlockDevice("d", standins.spec.kernel, aio="io_uring"),))
    async with standins.firecracker(spec={"devices": bad.devices}) as vm:
        with pytest.raises(ApiError, match="PATCH /vm refused"):
            await vm._call("PATCH", "/vm", {"state": "Paused"})


async def test_in_a_jail(standins: Standins, erofs_disk: Path, tmp_path: Path) -> None:
    """As a user of its own, with what it needs brought in, at boot and later."""
    recorded: list[tuple[str, str | int]] = []
    jailer = Jailer(standins.program("jailer", "").path, base_dir=tmp_path / "jails")
    made = standins.firecracker(
        jailer=jailer, record=lambda kind, value: recorded.append((kind, value))
    )
    async with booted(made) as (vm, guest):
        status = Path(f"/proc/{vm.pid}/status").read_text()
        uids = next(line for line in status.splitlines() if line.startswith("Uid:"))
        assert set(uids.split()[1:]) == {str(own_uid(vm_id(vm.spec.name)))}
        assert vm.capabilities.jail
        handle = await vm.attach(BlockDevice("root", erofs_disk, read_only=True))
        await mount(guest, handle)
        assert await shell(guest, "echo fine") == "fine\n"
        assert {"tree", "mount", "process"} <= {kind for kind, _ in recorded}
    assert list(jailer.base_dir.iterdir()) == []
    assert mounted_below(tmp_path) == []
