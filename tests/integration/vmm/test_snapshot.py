"""VMs saved and loaded again: the guest goes on where it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.vmm.conftest import Boot
from tests.integration.vmm.guest import GuestShell
from vmm.errors import InvalidConfig, InvalidState, Unsupported
from vmm.events import VmState
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import MIB, BalloonDevice, BlockDevice, NinePDevice, RngDevice, VmSpec

pytestmark = [pytest.mark.vm, pytest.mark.root]


@asynccontextmanager
async def loaded(
    spec: VmSpec, source: Path, cache_dir: Path, binary: Path
) -> AsyncIterator[tuple[QemuHypervisor, GuestShell]]:
    restored = replace(spec, restored=True)
    async with QemuHypervisor(restored, cache_dir=cache_dir, binary=binary) as vm:
        await vm.restore(source)
        assert vm.state is VmState.PAUSED
        await vm.resume()
        async with await vm.dial_agent(60):
            shell = await GuestShell.open(spec.runtime_dir / "cmd.sock")
            try:
                yield vm, shell
            finally:
                await shell.aclose()


@pytest.mark.parametrize("where", ["in the state", "in a file"])
async def test_a_loaded_guest_goes_on(
    where: str,
    spec: VmSpec,
    boot: Boot,
    disk: Path,
    tmp_path: Path,
    cache_dir: Path,
    qemu_program: Path,
) -> None:
    target = tmp_path / "snapshot"
    target.mkdir()
    spec = replace(
        spec,
        max_memory_bytes=512 * MIB,
        memory_file=tmp_path / "memory" if where == "in a file" else None,
        devices=(*spec.devices, RngDevice(), BalloonDevice(), BlockDevice("disk", disk)),
    )
    async with boot(spec, binary=qemu_program) as (vm, shell):
        await shell.run("echo remembered > /proc/sys/kernel/hostname")
        await vm.pause()
        await vm.snapshot(target)
        if where == "in a file":
            with pytest.raises(InvalidState, match="belongs to the snapshot"):
                await vm.resume()
        else:
            await vm.resume()
            assert await shell.run("hostname") == "remembered"
    for _ in range(2):
        async with loaded(spec, target, cache_dir, qemu_program) as (vm, shell):
            assert await shell.run("hostname") == "remembered"
            assert await shell.run("head -c 11 /dev/vda") == "katapy-disk"
            await shell.run("echo changed > /proc/sys/kernel/hostname")
            await vm.resize_memory(384 * MIB, 20)


async def test_what_can_not_be_saved_or_loaded(
    spec: VmSpec, boot: Boot, tmp_path: Path, cache_dir: Path
) -> None:
    target = tmp_path / "snapshot"
    target.mkdir()
    async with boot(spec) as (vm, _):
        with pytest.raises(InvalidState, match="running, not paused"):
            await vm.snapshot(target)
        await vm.pause()
        await vm.snapshot(target)
    async with QemuHypervisor(replace(spec, restored=True), cache_dir=cache_dir) as vm:
        with pytest.raises(InvalidConfig, match="no snapshot in"):
            await vm.restore(tmp_path)
        with pytest.raises(InvalidState, match="made to be restored"):
            await vm.boot()
    other = replace(spec, restored=True, memory_bytes=384 * MIB)
    async with QemuHypervisor(other, cache_dir=cache_dir) as vm:
        with pytest.raises(InvalidConfig, match="has memory_bytes"):
            await vm.restore(target)
    shared = NinePDevice("share", "tag", tmp_path)
    async with boot(replace(spec, devices=(*spec.devices, shared))) as (vm, _):
        await vm.pause()
        with pytest.raises(Unsupported, match="without shared directories"):
            await vm.snapshot(target)
