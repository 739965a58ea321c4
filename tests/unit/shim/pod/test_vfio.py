"""PCI devices of the host for a pod: which ones, and who gets them, on a made-up sysfs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shim.cleanup.rollback import Rollback
from shim.config.hypervisors import CloudHypervisor, Firecracker, Qemu
from shim.config.model import Config, Runtime
from shim.errors import FailedPrecondition, InvalidArgument, NotFound
from shim.log import Log
from shim.oci.devices import device_rules, guest_devices
from shim.pod import vfio as pod_vfio
from shim.pod.vfio import PodVfio, cold_plugged
from shim.pod.vfio_groups import function_at, functions_of, vfio_groups
from vmm.spec import AttachedDevice, Device, PciPath, VfioDevice

NIC, PORT, AUDIO = "0000:01:00.0", "0000:00:1c.0", "0000:01:00.1"
HOT = Config(hypervisor=Qemu(hot_plug_vfio="root-port"))
LOG = Log(-1)
COLD = Config(hypervisor=Qemu(cold_plug_vfio="root-port"))


def asking_for(*paths: str, **resources: Any) -> dict[str, Any]:
    devices = [
        {"path": path, "type": "c", "major": 10 if path.endswith("vfio") else 511, "minor": n}
        for n, path in enumerate(paths)
    ]
    return {"linux": {"devices": devices, "resources": resources}}


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Group 4: a card of two functions behind a port; group 5: a card with the host's driver."""
    for group, address, kind, driver in (
        ("4", PORT, "0x060400", "pcieport"),
        ("4", NIC, "0x020000", "vfio-pci"),
        ("4", AUDIO, "0x040300", "vfio-pci"),
        ("5", "0000:02:00.0", "0x020000", "e1000e"),
        ("6", "0000:03:00.0", "0x020000", ""),
    ):
        function = tmp_path / "bus/pci/devices" / address
        function.mkdir(parents=True)
        (function / "class").write_text(f"{kind}\n")
        if driver:
            (function / "driver").symlink_to(f"../../drivers/{driver}")
        (function / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
        members = tmp_path / "kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(function)
    monkeypatch.setattr(pod_vfio, "functions_of", partial(functions_of, sysfs=tmp_path))
    return tmp_path


class Vm:
    """What of a pod's VM is used here: a list of devices that grows and shrinks."""

    def __init__(self, *devices: Device) -> None:
        self.devices: dict[str, AttachedDevice] = {}
        for device in devices:
            self._add(device, hot=False)
        self.hypervisor = self

    def _add(self, device: Device, *, hot: bool) -> AttachedDevice:
        place = PciPath(((0x1E - len(self.devices), 0), (0, 0)))
        self.devices[device.id] = AttachedDevice(device, place, hot)
        return self.devices[device.id]

    async def attach(self, device: Device) -> AttachedDevice:
        return self._add(device, hot=True)

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        del self.devices[handle.id]


def test_the_groups_that_a_container_names() -> None:
    assert vfio_groups(asking_for("/dev/vfio/vfio", "/dev/vfio/4", "/dev/fuse")) == ["/dev/vfio/4"]
    everything = [{"allow": True, "access": "rwm"}]
    assert vfio_groups(asking_for("/dev/vfio/4", devices=everything)) == []
    for path in ("/dev/vfio/devices/vfio0", "/dev/vfio/noiommu-0"):
        with pytest.raises(InvalidArgument, match=path):
            vfio_groups(asking_for(path))


def test_the_guest_s_spec_has_none_of_them() -> None:
    linux = asking_for("/dev/vfio/vfio", "/dev/vfio/4")["linux"]
    assert guest_devices(linux["devices"], {}) == []
    rule = {"allow": True, "type": "c", "major": 511, "minor": 1, "access": "rw"}
    assert rule not in device_rules([rule], [], host_devices=linux["devices"])


def test_a_group_s_functions(sysfs: Path) -> None:
    assert functions_of("/dev/vfio/4", sysfs) == [NIC, AUDIO]
    with pytest.raises(NotFound, match="no VFIO group"):
        functions_of("/dev/vfio/9", sysfs)
    with pytest.raises(FailedPrecondition, match="driver e1000e"):
        functions_of("/dev/vfio/5", sysfs)
    with pytest.raises(FailedPrecondition, match="driver none"):
        functions_of("/dev/vfio/6", sysfs)


def test_devices_from_boot(sysfs: Path) -> None:
    spec = asking_for("/dev/vfio/4")
    assert [device.address for device in cold_plugged(spec, COLD)] == [NIC, AUDIO]
    assert cold_plugged(spec, HOT) == ()
    assert cold_plugged(spec, Config(hypervisor=Firecracker())) == ()


def by_container(config: Config, **hypervisor: Any) -> Config:
    """The same, with containers that drive their devices themselves."""
    changed = replace(config.hypervisor, **hypervisor)
    return replace(config, hypervisor=changed, runtime=Runtime(vfio_mode="vfio"))


def test_a_device_that_the_container_drives_needs_an_iommu_in_the_vm(sysfs: Path) -> None:
    spec = asking_for("/dev/vfio/4")
    with pytest.raises(FailedPrecondition, match="enable_iommu = true"):
        cold_plugged(spec, by_container(COLD))
    clh = Config(hypervisor=CloudHypervisor(cold_plug_vfio="root-port"))
    with pytest.raises(FailedPrecondition, match="only QEMU has"):
        cold_plugged(spec, by_container(clh))
    assert len(cold_plugged(spec, by_container(COLD, enable_iommu=True))) == 2


async def test_the_agent_is_told_who_drives_a_device(sysfs: Path) -> None:
    spec, cleanup = asking_for("/dev/vfio/4"), Rollback(LOG)
    (told,) = await _pod(Vm(), by_container(HOT, enable_iommu=True)).add(spec, cleanup)
    assert (told.type, told.container_path) == ("vfio-pci", "/dev/vfio/4")
    bridged = by_container(HOT, enable_iommu=True, hot_plug_vfio="bridge-port")
    with pytest.raises(FailedPrecondition, match="'root-port'"):
        await _pod(Vm(), bridged).add(spec, cleanup)


def _pod(vm: Vm, config: Config) -> PodVfio:
    return PodVfio(vm, config, LOG)  # type: ignore[arg-type]


async def test_plugged_in_once_and_out_with_the_last_user(sysfs: Path) -> None:
    vm = Vm()
    pod = _pod(vm, HOT)
    first, second = Rollback(LOG), Rollback(LOG)
    (told,) = await pod.add(asking_for("/dev/vfio/4"), first)
    assert (told.type, told.container_path) == ("vfio-pci-gk", "/dev/vfio/4")
    assert list(told.options) == [f"{NIC}=1e/00", f"{AUDIO}=1d/00"]
    assert await pod.add(asking_for("/dev/vfio/4"), second) == [told]
    await first.unwind()
    assert len(vm.devices) == 2
    await second.unwind()
    assert not vm.devices


async def test_one_from_boot_stays(sysfs: Path) -> None:
    vm = Vm(*cold_plugged(asking_for("/dev/vfio/4"), COLD))
    cleanup = Rollback(LOG)
    (told,) = await _pod(vm, COLD).add(asking_for("/dev/vfio/4"), cleanup)
    assert len(told.options) == 2
    await cleanup.unwind()
    assert len(vm.devices) == 2


async def test_what_is_refused_leaves_nothing(sysfs: Path) -> None:
    vm = Vm()
    for config in (Config(), COLD, Config(hypervisor=Firecracker())):
        with pytest.raises(FailedPrecondition, match="hot_plug_vfio is 'no-port'"):
            await _pod(vm, config).add(asking_for("/dev/vfio/4"), Rollback(LOG))

    async def attach(device: VfioDevice) -> AttachedDevice:
        if device.address == AUDIO:
            raise RuntimeError("no place is left")
        return vm._add(device, hot=True)

    vm.attach = attach  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError):
        await _pod(vm, HOT).add(asking_for("/dev/vfio/4"), Rollback(LOG))
    assert not vm.devices


def test_a_volume_is_one_function(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices/0000:03:00.0/driver").symlink_to("../../drivers/vfio-pci")
    for name in ("/dev/vfio/6", "03:00.0", "0000:03:00.0"):
        assert function_at(name, sysfs) == "0000:03:00.0"
    assert function_at("01:00.0", sysfs) == NIC
    for name, error, text in (
        ("/dev/vfio/4", InvalidArgument, "name one of them"),
        ("/dev/sdb", InvalidArgument, "neither a VFIO group"),
        ("0000:99:00.0", NotFound, "not there"),
        ("02:00.0", FailedPrecondition, "has the driver e1000e"),
    ):
        with pytest.raises(error, match=text):
            function_at(name, sysfs)
