"""Devices, processors and memory that come and go while the guest runs."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.integration.vmm.conftest import Boot
from vmm.errors import (
    ApiError,
    Conflict,
    GuestTimeout,
    InvalidConfig,
    LimitExceeded,
    NotFound,
    Unsupported,
)
from vmm.events import BalloonChanged, VmState
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import MIB, BalloonDevice, BlockDevice, NetDevice, PciPath, VmSpec

pytestmark = [pytest.mark.vm, pytest.mark.root]

_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000


@pytest.fixture
def tap() -> Iterator[int]:
    """A tap that goes with its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"kit%d", _IFF_TAP_NO_PI_VNET_HDR))
    yield fd
    os.close(fd)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    path = tmp_path / "with,comma.img"
    path.write_bytes(b"second" + bytes((1 << 20) - 6))
    return path


async def test_disk(spec: VmSpec, boot: Boot, disk: Path, qemu_program: Path) -> None:
    device = BlockDevice("ctr-1_rootfs.with-a-very-long-id" * 3, disk, serial="HOT")
    async with boot(spec, binary=qemu_program) as (vm, shell):
        for _ in range(2):
            handle = await vm.attach(device)
            assert isinstance(handle.address, PciPath)
            port, slot = str(handle.address).split("/")
            await shell.until("[ -b /dev/vda ]")
            where = await shell.run("readlink -f /sys/block/vda/device")
            assert f"/0000:00:{port}.0/" in where
            assert where.split("/")[-2].endswith(f":{slot}.0")
            assert await shell.run("head -c 11 /dev/vda; cat /sys/block/vda/serial") == (
                "katapy-diskHOT"
            )
            with pytest.raises(Conflict):
                await vm.attach(device)
            with disk.open("r+b") as file:
                file.truncate(16 << 20)
            await vm.resize_block(handle, 16 << 20)
            await shell.until("[ $(cat /sys/block/vda/size) = 32768 ]")
            await vm.detach(handle, 20)
            assert await shell.run("ls /sys/block") == ""
            with pytest.raises(NotFound):
                await vm.detach(handle, 1)
            with disk.open("r+b") as file:
                file.truncate(8 << 20)
        assert list(vm.devices) == ["agent", "cmd"]


async def test_ports_run_out(spec: VmSpec, boot: Boot, disk: Path, second: Path) -> None:
    async with boot(replace(spec, hotplug_slots=1)) as (vm, _):
        first = await vm.attach(BlockDevice("a", disk))
        with pytest.raises(LimitExceeded):
            await vm.attach(BlockDevice("b", second))
        await vm.detach(first, 20)
        await vm.attach(BlockDevice("b", second))


async def test_a_failed_attach_leaves_nothing(
    spec: VmSpec, boot: Boot, disk: Path, tap: int
) -> None:
    async with boot(replace(spec, hotplug_slots=1)) as (vm, _):
        for _ in range(3):
            with pytest.raises(ApiError, match="mac"):
                await vm.attach(NetDevice("n", "no-address", fds=(tap,)))
            with pytest.raises(InvalidConfig, match="no disk image"):
                await vm.attach(BlockDevice("d", Path("/nonexistent")))
        await vm.attach(BlockDevice("d", disk))


async def test_network_by_descriptor(
    spec: VmSpec, boot: Boot, tap: int, qemu_program: Path
) -> None:
    async with boot(spec, binary=qemu_program) as (vm, shell):
        for number in (1, 2):
            mac = f"02:00:00:00:00:0{number}"
            handle = await vm.attach(NetDevice("eth", mac, fds=(tap,), mtu=1400))
            await shell.until("[ -e /sys/class/net/eth0/address ]")
            found = await shell.run("cd /sys/class/net/eth0; cat address mtu; cd /")
            assert found == f"{mac}\n1400"
            await vm.detach(handle, 20)
            assert "eth0" not in await shell.run("ls /sys/class/net")


async def test_a_guest_that_does_not_let_go(spec: VmSpec, disk: Path) -> None:
    # A panicked guest that neither resets nor answers.
    spec = replace(spec, cmdline="rdinit=/nothing panic=0", initrd=None)
    async with QemuHypervisor(spec) as vm:
        await vm.boot()
        handle = await vm.attach(BlockDevice("d", disk))
        for _ in range(2):
            with pytest.raises(GuestTimeout, match="has not let go"):
                await vm.detach(handle, 0.3)
        assert vm.devices["d"] == handle  # still reserved
        with pytest.raises(Conflict):
            await vm.attach(BlockDevice("d", disk))


async def test_what_was_there_at_boot_stays(spec: VmSpec, boot: Boot, disk: Path) -> None:
    async with boot(replace(spec, image=BlockDevice("root", disk))) as (vm, _):
        with pytest.raises(Conflict):
            await vm.detach(vm.devices["root"], 1)


async def test_processors(spec: VmSpec, boot: Boot, qemu_program: Path) -> None:
    async with boot(replace(spec, max_vcpus=3), binary=qemu_program) as (vm, shell):
        up = await vm.resize_vcpus(3, 10)
        assert (up.actual, up.guest_must_online) == (3, True)
        await shell.until("[ -d /sys/devices/system/cpu/cpu2 ]")
        await shell.run("for n in 1 2; do echo 1 > /sys/devices/system/cpu/cpu$n/online; done")
        assert await shell.run("nproc") == "3"
        assert len(await vm.vcpu_threads()) == 3
        with pytest.raises(InvalidConfig):
            await vm.resize_vcpus(4, 1)
        if not vm.capabilities.vcpu_down:
            with pytest.raises(Unsupported, match="vcpu_down"):
                await vm.resize_vcpus(1, 1)
            return
        assert (await vm.resize_vcpus(1, 30)).actual == 1
        assert await shell.run("nproc") == "1"
        with pytest.raises(LimitExceeded):
            await vm.resize_vcpus(2, 10)
        assert vm.state is VmState.RUNNING


async def test_memory_by_virtio_mem(spec: VmSpec, boot: Boot, qemu_program: Path) -> None:
    async with boot(replace(spec, max_memory_bytes=768 * MIB), binary=qemu_program) as (vm, shell):
        before = int(await shell.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
        up = await vm.resize_memory(512 * MIB, 30)
        assert (up.actual, up.guest_must_online) == (512 * MIB, False)
        await shell.until(
            f"[ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -gt {before + 250_000} ]"
        )
        assert (await vm.resize_memory(256 * MIB, 30)).actual == 256 * MIB
        after = int(await shell.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
        assert after < before + 10_000


async def test_memory_by_dimms(spec: VmSpec, boot: Boot, qemu_program: Path) -> None:
    spec = replace(spec, max_memory_bytes=512 * MIB, memory_hotplug="dimm")
    async with boot(spec, binary=qemu_program) as (vm, shell):
        before = int(await shell.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
        assert (await vm.resize_memory(384 * MIB, 30)).actual == 384 * MIB
        await shell.until(
            f"[ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -gt {before + 120_000} ]"
        )
        assert (await vm.resize_memory(256 * MIB, 30)).actual == 256 * MIB


async def test_memory_without_the_driver(spec: VmSpec) -> None:
    spec = replace(spec, cmdline="rdinit=/nothing panic=0", initrd=None, max_memory_bytes=512 * MIB)
    async with QemuHypervisor(spec) as vm:
        await vm.boot()
        with pytest.raises(GuestTimeout, match="needs virtio_mem"):
            await vm.resize_memory(512 * MIB, 0.3)


async def test_balloon(spec: VmSpec, boot: Boot) -> None:
    async with boot(replace(spec, devices=(*spec.devices, BalloonDevice()))) as (vm, _):
        with vm.subscribe() as events, trio.fail_after(30):
            await vm.set_balloon(192 * MIB)
            async for event in events:
                if event == BalloonChanged(192 * MIB):
                    break
