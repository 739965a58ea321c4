"""Cloud Hypervisor VMs, from boot to end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from protos.kata import agent_pb2
from protos.katapy import extension_pb2
from tests.integration.agent.conftest import LIMIT
from tests.integration.vmm.standins import (
    Standins,
    agent_of,
    booted,
    erofs_disk,
    image,
    mount,
    newer_qemu,
    seen,
    shell,
    standins,
)
from vmm.cloud_hypervisor.plan import Landlock
from vmm.errors import Conflict, InvalidConfig, NotFound, Unsupported
from vmm.events import DeviceRemoved, ExitCause, GuestReset, StateChanged, VmState
from vmm.spec import MIB, BlockDevice, FsDevice, PciPath, PmemDevice, RateLimit
from vmm.virtiofsd import run_virtiofsd

__all__ = ["erofs_disk", "image", "newer_qemu", "standins"]  # fixtures

pytestmark = [pytest.mark.vm, pytest.mark.root]

VERSIONS = ["46.0", "53.0"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_hot_plug(standins: Standins, erofs_disk: Path, version: str) -> None:
    recorded: list[tuple[str, str | int]] = []
    made = standins.cloud_hypervisor(
        version, record=lambda kind, value: recorded.append((kind, value))
    )
    async with booted(made) as (vm, guest):
        assert ("process", vm.pid) in recorded
        assert isinstance(vm.devices["image"].address, PciPath)
        disk = BlockDevice("root", erofs_disk, read_only=True, shared=True)
        handle = await vm.attach(disk)
        assert isinstance(handle.address, PciPath)
        await mount(guest, handle)
        assert await shell(guest, "echo fine") == "fine\n"
        with pytest.raises(Conflict, match="in use"):
            await vm.attach(disk)
        limit = RateLimit(bytes_per_second=MIB)
        other = await vm.attach(
            BlockDevice("other", erofs_disk, read_only=True, shared=True, limit=limit)
        )
        with vm.subscribe() as events:
            await vm.detach(other, 20)
            await seen(events, DeviceRemoved("other"))
        with pytest.raises(NotFound):
            await vm.detach(other, 1)
        assert "other" not in vm.devices
        assert await vm.counters()


async def test_shared_directory(standins: Standins, tmp_path: Path) -> None:
    """One from the start is mounted; another is hot-plugged and taken away."""
    sockets = [standins.spec.runtime_dir / name for name in ("cold.sock", "hot.sock")]
    devices = (*standins.spec.devices, FsDevice("cold", "tag", sockets[0]))
    async with (
        run_virtiofsd(tmp_path, sockets[0]),
        run_virtiofsd(tmp_path, sockets[1]),
        booted(standins.cloud_hypervisor(spec={"devices": devices})) as (vm, guest),
    ):
        storage = agent_pb2.Storage(
            driver="virtio-fs", source="tag", fstype="virtiofs", mount_point="/run/kata/shared"
        )
        request = agent_pb2.CreateSandboxRequest(sandbox_id="s", storages=[storage])
        await guest.agent.CreateSandbox(request, timeout=LIMIT)
        handle = await vm.attach(FsDevice("hot", "other", sockets[1]))
        await vm.detach(handle, 20)


async def test_resize(standins: Standins, newer_qemu: Path) -> None:
    spec = {"max_vcpus": 2, "max_memory_bytes": 768 * MIB}
    made = standins.cloud_hypervisor(spec=spec, qemu=newer_qemu)
    async with booted(made) as (vm, guest):
        grown = await vm.resize_memory(512 * MIB + 1, 30)
        assert grown.actual == 514 * MIB
        assert (await vm.resize_memory(256 * MIB, 30)).actual == 256 * MIB
        await vm.set_balloon(200 * MIB)
        added = await vm.resize_vcpus(2, 20)
        assert (added.actual, added.guest_must_online) == (2, True)
        request = agent_pb2.OnlineCPUMemRequest(nb_cpus=2, cpu_only=True)
        await guest.agent.OnlineCPUMem(request, timeout=LIMIT)
        assert (await vm.resize_vcpus(1, 30)).actual == 1


async def test_pause_and_connections(standins: Standins) -> None:
    async with booted(standins.cloud_hypervisor()) as (vm, guest):
        with vm.subscribe() as events:
            await vm.pause()
            await seen(events, StateChanged(VmState.PAUSED))
            await vm.resume()
            await seen(events, StateChanged(VmState.RUNNING))
        await guest.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)
        async with agent_of(vm) as second:
            await second.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)


async def test_a_guest_that_resets_ends_the_vm(standins: Standins) -> None:
    """It would go on in the same process: the reset is seen, and that is the end."""
    cmdline = "quiet root=/dev/none panic=1"
    made = standins.cloud_hypervisor(spec={"cmdline": cmdline, "initrd": None})
    async with made as vm:
        with vm.subscribe() as events:
            await vm.boot()
            await seen(events, GuestReset())
        with trio.fail_after(LIMIT):
            await vm.exited.wait()
        assert vm.exit_reason is not None
        assert vm.exit_reason.cause is ExitCause.GUEST_PANIC
        assert "VFS" in str(vm.exit_reason)


async def test_the_end_is_seen(standins: Standins) -> None:
    async with booted(standins.cloud_hypervisor()) as (vm, _):
        os.kill(vm.pid, signal.SIGKILL)
        with trio.fail_after(10):
            await vm.exited.wait()
        assert vm.exit_reason is not None
        assert vm.exit_reason.cause is ExitCause.HOST_SIGNAL


async def test_an_orderly_shutdown(standins: Standins) -> None:
    async with booted(standins.cloud_hypervisor()) as (vm, _):
        # Our guest takes no notice of its power button, so the grace runs out.
        reason = await vm.shutdown(1)
        assert reason.cause in (ExitCause.GUEST_SHUTDOWN, ExitCause.HOST_SIGNAL)
        assert await vm.kill() == reason


async def test_landlock_keeps_other_files_out(
    standins: Standins, erofs_disk: Path, tmp_path: Path
) -> None:
    landlock = Landlock(((erofs_disk.parent, "r"),))
    async with booted(standins.cloud_hypervisor(landlock=landlock)) as (vm, _):
        assert vm.capabilities.jail
        await vm.attach(BlockDevice("d", erofs_disk, read_only=True, shared=True))
        outside = tmp_path / "outside"
        outside.write_bytes(bytes(2 * MIB))
        with pytest.raises(InvalidConfig, match="landlock"):
            await vm.attach(PmemDevice("p", outside))
        with pytest.raises(Unsupported, match="rate_limit"):
            await vm.set_rate_limit(vm.devices["d"], None)
