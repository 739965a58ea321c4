"""Firecracker and Cloud Hypervisor VMs saved and loaded again: the guest goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from protos.katapy import extension_pb2
from tests.integration.agent.conftest import LIMIT
from tests.integration.vmm.standins import (
    Standins,
    Vm,
    agent_of,
    booted,
    erofs_disk,
    image,
    mount,
    shell,
    standins,
)
from tests.standins.taps import open_tap
from vmm.errors import InvalidConfig, InvalidState, Unsupported
from vmm.events import VmState
from vmm.spec import BlockDevice, NetDevice

__all__ = ["erofs_disk", "image", "standins"]  # fixtures

pytestmark = [pytest.mark.vm, pytest.mark.root]

LINKS = Path("/sys/class/net")


@contextmanager
def card(what: str, tap: str) -> Iterator[NetDevice]:
    """A network card on a tap of the name, or on an open one where the VM is to get that."""
    if "fds" not in what:
        yield NetDevice("net", "02:00:00:00:00:01", tap=tap)
        return
    fd = open_tap(tap)
    try:
        yield NetDevice("net", "02:00:00:00:00:01", fds=(fd,))
    finally:
        os.close(fd)


def made(what: str, standins: Standins, net: NetDevice, *, restored: bool = False) -> Vm:
    """A VM with a network card."""
    vmm, version, *rest = what.split()
    spec = {"devices": (*standins.spec.devices, net), "restored": restored}
    if vmm == "firecracker":
        return standins.firecracker(version, pci="pci" in rest, spec=spec)
    return standins.cloud_hypervisor(version, spec=spec)


@pytest.mark.parametrize(
    "what", ["firecracker 1.13.1", "firecracker 1.16.1 pci", "clh 46.0", "clh 53.0 fds"]
)
async def test_a_loaded_guest_goes_on(
    what: str, standins: Standins, erofs_disk: Path, tmp_path: Path
) -> None:
    target = tmp_path / "snapshot"
    target.mkdir()
    with card(what, "kit-snap0") as net:
        async with booted(made(what, standins, net)) as (vm, guest):
            with pytest.raises(InvalidState, match="running, not paused"):
                await vm.snapshot(target)
            disk = BlockDevice("root", erofs_disk, read_only=True, shared=True)
            await mount(guest, await vm.attach(disk))
            await vm.pause()
            await vm.snapshot(target)
            # The saved VM goes on, and takes new connections whatever its version.
            await vm.resume()
            async with agent_of(vm) as again:
                assert await shell(again, "echo fine") == "fine\n"
    for tap in ("kit-snap0", "kit-snap1"):
        with card(what, tap) as net:
            async with made(what, standins, net, restored=True) as vm:
                await vm.restore(target)
                assert vm.state is VmState.PAUSED
                await vm.resume()
                assert {link.name for link in LINKS.glob("kit-snap*")} == {tap}
                async with agent_of(vm) as guest:
                    await guest.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)
                    # The disk that was mounted before is there, in the same place.
                    assert await shell(guest, "echo fine") == "fine\n"


@pytest.mark.parametrize("what", ["firecracker 1.16.1", "clh 53.0"])
async def test_what_can_not_be_loaded(what: str, standins: Standins, tmp_path: Path) -> None:
    net = NetDevice("net", "02:00:00:00:00:01", tap="kit-snap0")
    async with made(what, standins, net, restored=True) as vm:
        with pytest.raises(InvalidConfig, match="no snapshot in"):
            await vm.restore(tmp_path)
        with pytest.raises(InvalidState, match="made to be restored"):
            await vm.boot()


async def test_before_firecracker_has_snapshots(standins: Standins, tmp_path: Path) -> None:
    async with booted(standins.firecracker("1.12.1")) as (vm, _):
        await vm.pause()
        with pytest.raises(Unsupported, match=r"Firecracker 1\.12\.1.*snapshot.*1\.13"):
            await vm.snapshot(tmp_path)


async def test_another_socket_needs_a_version(standins: Standins, tmp_path: Path) -> None:
    """A copy beside the saved VM: its vsock socket is its own from 1.16 on."""
    target = tmp_path / "snapshot"
    target.mkdir()
    async with booted(standins.firecracker("1.14.1")) as (vm, _):
        await vm.pause()
        await vm.snapshot(target)
        other = standins.spec.runtime_dir / "other"
        other.mkdir()
        beside = replace(standins, spec=replace(standins.spec, runtime_dir=other))
        async with beside.firecracker("1.14.1", spec={"restored": True}) as copy:
            with pytest.raises(Unsupported, match=r"vsock socket.*1\.16"):
                await copy.restore(target)
        async with beside.firecracker("1.16.1", spec={"restored": True}) as copy:
            await copy.restore(target)
            await copy.resume()
            async with agent_of(copy) as guest:
                await guest.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)
        assert list(other.iterdir()) == []
        other.rmdir()
