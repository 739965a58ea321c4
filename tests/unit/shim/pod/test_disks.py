"""Disks of direct-assigned volumes that others than the VMM serve."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shim.cleanup.rollback import Rollback
from shim.config.hypervisors import Qemu
from shim.config.model import Config
from shim.errors import FailedPrecondition, InvalidArgument, NotFound
from shim.log import Log
from shim.pod.disks import PodDisks
from shim.storage.direct_volume import DirectVolume, Kind
from vmm.hypervisor import Capabilities
from vmm.spec import AttachedDevice, PciPath, VhostUserBlockDevice


class Vm:
    """Takes devices and lets them go."""

    def __init__(self, *, shares_memory: bool) -> None:
        capabilities = Capabilities("pci", 1, 30, fs_hot=shares_memory, block_hot="add_remove")
        self.hypervisor = SimpleNamespace(capabilities=capabilities, attach=self.attach)
        self.devices: list[Any] = []

    async def attach(self, device: Any) -> AttachedDevice:
        self.devices.append(device)
        return AttachedDevice(device, PciPath(((2, 0), (1, 0))), hot=True)

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        self.devices.remove(handle.device)


def volume(device: Path | str, kind: Kind = "vhost-user") -> DirectVolume:
    return DirectVolume("/v", str(device), "ext4", kind=kind, queues=3)


async def assign(vm: Vm, of: DirectVolume, config: Config | None = None) -> Rollback:
    undo = Rollback(Log(-1))
    disks = PodDisks(vm, config or Config(hypervisor=Qemu()))  # type: ignore[arg-type]
    await disks.assign("name", of, False, undo)
    return undo


async def test_a_daemons_disk_comes_and_goes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    vm = Vm(shares_memory=True)
    undo = await assign(vm, volume(tmp_path / "s"))
    assert vm.devices == [VhostUserBlockDevice("name", tmp_path / "s", 3)]
    await undo.unwind()
    assert vm.devices == []
    with pytest.raises(FailedPrecondition, match="shared_fs = 'virtio-fs'"):
        await assign(Vm(shares_memory=False), volume(tmp_path / "s"))


async def test_what_is_no_daemons_socket_is_said(tmp_path: Path) -> None:
    vm = Vm(shares_memory=True)
    with pytest.raises(NotFound, match=f"{tmp_path}/none: No such file"):
        await assign(vm, volume(tmp_path / "none"))
    with pytest.raises(InvalidArgument, match="is no socket"):
        await assign(vm, volume(tmp_path))


async def test_a_function_of_the_host_needs_leave() -> None:
    vm = Vm(shares_memory=True)
    with pytest.raises(FailedPrecondition, match="hot_plug_vfio is 'no-port'"):
        await assign(vm, volume("0000:01:00.0", "vfio"))
    allowed = Config(hypervisor=Qemu(hot_plug_vfio="root-port"))
    with pytest.raises(InvalidArgument, match="neither a VFIO group"):
        await assign(vm, volume("sdb", "vfio"), allowed)
