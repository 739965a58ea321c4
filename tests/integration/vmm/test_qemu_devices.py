"""Each kind of disk, memory and machine that QEMU offers, seen from inside the guest."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.vmm.conftest import Boot
from vmm.errors import InvalidConfig
from vmm.events import ExitCause
from vmm.qemu.qemu import QemuHypervisor
from vmm.sockets import listen
from vmm.spec import (
    MIB,
    BlockDevice,
    NumaNode,
    PanicDevice,
    PmemDevice,
    RateLimit,
    RngDevice,
    ScsiAddress,
    VhostUserBlockDevice,
    VmSpec,
)

pytestmark = [pytest.mark.vm, pytest.mark.root]

NOBODY = 65534


async def test_scsi_disks_cold_and_hot(
    spec: VmSpec, boot: Boot, disk: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(b"second-disk" + bytes(MIB - 11))
    cold = BlockDevice("cold", disk, bus="scsi")
    spec = replace(spec, scsi=True, devices=(*spec.devices, cold))
    async with boot(spec) as (vm, shell):
        assert vm.devices["cold"].address == ScsiAddress(0, 0)
        await shell.until("[ -b /dev/sda ]")
        assert await shell.run("head -c 11 /dev/sda") == "katapy-disk"
        for _ in range(2):
            handle = await vm.attach(BlockDevice("hot", second, bus="scsi"))
            assert str(handle.address) == "1:0"
            await shell.until("[ -e /sys/class/scsi_device/*:1:0/device/block/sdb ]")
            assert await shell.run("head -c 11 /dev/sdb") == "second-disk"
            await vm.detach(handle, 20)
            await shell.until("[ ! -e /sys/block/sdb ]")


@pytest.mark.parametrize("nvdimm", [False, True])
async def test_persistent_memory(nvdimm: bool, spec: VmSpec, boot: Boot, tmp_path: Path) -> None:
    file = tmp_path / "pmem"
    file.write_bytes(b"persistent" + bytes(4 * MIB - 10))
    device = PmemDevice("pmem", file, nvdimm=nvdimm)
    spec = replace(spec, devices=(*spec.devices, device))
    async with boot(spec) as (_, shell):
        await shell.until("[ -b /dev/pmem0 ]")
        assert await shell.run("head -c 10 /dev/pmem0") == "persistent"
        await shell.run("printf written | dd of=/dev/pmem0 conv=notrunc,fsync 2>/dev/null")
    assert file.read_bytes()[:7] == b"written"
    file.write_bytes(bytes(MIB))
    with pytest.raises(InvalidConfig, match="no multiple of 2 MiB"):
        async with QemuHypervisor(spec):
            pass


@asynccontextmanager
async def storage_daemon(image: Path, socket: Path) -> AsyncIterator[None]:
    """A process that serves a disk over vhost-user."""
    disk = f"driver=file,node-name=d,filename={image}"
    with listen(socket) as listener:
        fd = listener.fileno()
        export = f"vhost-user-blk,id=e,node-name=d,writable=on,addr.type=fd,addr.str={fd}"
        argv = ["qemu-storage-daemon", "--blockdev", disk, "--export", export]
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, argv, pass_fds=(fd,))
            process = await nursery.start(run)
            yield
            process.terminate()
    socket.unlink(missing_ok=True)


async def test_vhost_user_disk(spec: VmSpec, boot: Boot, disk: Path, runtime_dir: Path) -> None:
    socket = runtime_dir / "disk.sock"
    device = VhostUserBlockDevice("disk", socket)
    async with (
        storage_daemon(disk, socket),
        boot(replace(spec, devices=(*spec.devices, device))) as (_, shell),
    ):
        await shell.until("[ -b /dev/vda ]")
        assert await shell.run("head -c 11 /dev/vda") == "katapy-disk"


async def test_rate_limits_and_counters(
    spec: VmSpec, boot: Boot, disk: Path, qemu_program: Path
) -> None:
    slow = BlockDevice("slow", disk, limit=RateLimit(bytes_per_second=512 << 10))
    read = "dd if=/dev/vda of=/dev/null bs=64k count={} iflag=direct 2>/dev/null; "
    read += "cut -d' ' -f1 /proc/uptime"
    async with boot(replace(spec, devices=(*spec.devices, slow)), binary=qemu_program) as (
        vm,
        shell,
    ):
        await shell.until("[ -b /dev/vda ]")

        async def seconds(blocks: int) -> float:
            before = float(await shell.run("cut -d' ' -f1 /proc/uptime"))
            return float(await shell.run(read.format(blocks))) - before

        # A megabyte at half a megabyte a second, less what may pass at once.
        assert await seconds(16) > 1.0
        handle = vm.devices["slow"]
        await vm.set_rate_limit(handle, None)
        assert await seconds(128) < 8.0
        assert (await vm.counters())["slow"]["read_bytes"] >= 9 * MIB
        with pytest.raises(InvalidConfig, match="one rate limit"):
            await vm.set_rate_limit(handle, None, None)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Enough huge pages of 2 MiB for a guest; the host's own setting comes back."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    try:
        setting.write_text(str(int(before) + 160))
    except OSError as error:
        pytest.skip(f"huge pages can't be reserved here: {error}")
    if int(setting.read_text()) < int(before) + 160:
        setting.write_text(before)
        pytest.skip("the host has not enough memory in one piece for huge pages")
    yield
    setting.write_text(before)


async def test_huge_pages(spec: VmSpec, boot: Boot, huge_pages: None) -> None:
    async with boot(replace(spec, hugepages=True)) as (vm, _):
        smaps = Path(f"/proc/{vm.pid}/smaps").read_text()
        (pages,) = re.findall(r"Size: +262144 kB\nKernelPageSize: +(\d+) kB", smaps)
        assert pages == "2048"


async def test_numa_nodes(spec: VmSpec, boot: Boot) -> None:
    nodes = (NumaNode(1, 96 * MIB, host_nodes=(0,)), NumaNode(1, 160 * MIB))
    async with boot(replace(spec, vcpus=2, numa=nodes)) as (_, shell):
        assert await shell.run("cat /sys/devices/system/node/online") == "0-1"
        assert await shell.run("cat /sys/devices/system/node/node1/cpulist") == "1"
    with pytest.raises(InvalidConfig, match="share out the memory"):
        async with QemuHypervisor(replace(spec, vcpus=2, numa=nodes, memory_bytes=512 * MIB)):
            pass


async def test_iommu(spec: VmSpec, boot: Boot, disk: Path, qemu_program: Path) -> None:
    devices = (*spec.devices, BlockDevice("disk", disk))
    async with boot(replace(spec, iommu=True, devices=devices), binary=qemu_program) as (_, shell):
        await shell.until("[ -b /dev/vda ]")
        assert await shell.run("head -c 11 /dev/vda") == "katapy-disk"
        assert int(await shell.run("ls /sys/kernel/iommu_groups | wc -l")) > 1


async def test_pc_hot_plugs_on_its_root_bus(
    spec: VmSpec, boot: Boot, disk: Path, qemu_program: Path
) -> None:
    spec = replace(spec, machine="pc", max_vcpus=2, max_memory_bytes=512 * MIB)
    async with boot(spec, binary=qemu_program) as (vm, shell):
        for _ in range(2):
            handle = await vm.attach(BlockDevice("hot", disk))
            await shell.until("[ -b /dev/vda ]")
            where = await shell.run("readlink -f /sys/block/vda/device")
            assert f"/0000:00:{handle.address}.0/" in where
            await vm.detach(handle, 20)
            await shell.until("[ ! -e /sys/block/vda ]")
        assert (await vm.resize_memory(384 * MIB, 20)).actual == 384 * MIB
        assert (await vm.resize_vcpus(2, 20)).actual == 2


async def test_memory_of_a_panicked_guest(spec: VmSpec, boot: Boot, tmp_path: Path) -> None:
    spec = replace(spec, panic_dump=tmp_path, devices=(*spec.devices, PanicDevice()))
    async with boot(spec) as (vm, shell):
        await shell.send("echo c > /proc/sysrq-trigger")
        with trio.fail_after(60):
            await vm.exited.wait()
        assert vm.exit_reason is not None
        assert vm.exit_reason.cause is ExitCause.GUEST_PANIC
    (core,) = tmp_path.glob("vmcore-katapy-*.elf")
    with core.open("rb") as file:
        assert file.read(4) == b"\x7fELF"
    assert core.stat().st_size > 200 * MIB


async def test_without_root(
    spec: VmSpec, boot: Boot, disk: Path, tmp_path: Path, qemu_program: Path
) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(b"second-disk" + bytes(MIB - 11))
    second.chmod(0o600)
    disk.chmod(0o600)
    devices = (*spec.devices, RngDevice(), BlockDevice("cold", disk))
    spec = replace(spec, user=(NOBODY, NOBODY), devices=devices)
    async with boot(spec, binary=qemu_program) as (vm, shell):
        status = Path(f"/proc/{vm.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
        assert "CapEff:\t0000000000000000" in status
        assert await shell.run("head -c 11 /dev/vda") == "katapy-disk"
        handle = await vm.attach(BlockDevice("hot", second))
        await shell.until("[ -b /dev/vdb ]")
        assert await shell.run("head -c 11 /dev/vdb") == "second-disk"
        await shell.run("printf written | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null")
        await vm.detach(handle, 20)
    assert second.read_bytes()[:7] == b"written"
