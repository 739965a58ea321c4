"""PCI functions taken from their driver and given back, on a sysfs of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.cleanup.ledger import Entry
from shim.cleanup.undo import undo
from shim.errors import FailedPrecondition, Internal
from shim.net import endpoint, pci
from shim.net.endpoint import Part, Wiring
from shim.net.links import Function, Link
from shim.pod import vfio_groups
from vmm.spec import VfioDevice

CARD, OTHER = "0000:03:10.1", "0000:03:10.3"
LINK = Link(3, "eth1", "", "02:00:00:00:00:01", 1500, function=Function(CARD, "igbvf", "7"))


class Kernel:
    """Does what the kernel does when sysfs is written to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.drivers = {"igbvf", "vfio-pci"}
        self._override: dict[str, str] = {}

    def folder(self, address: str) -> Path:
        return self.root / "bus/pci/devices" / address

    def add(self, address: str, driver: str, group: str) -> None:
        device = self.root / "devices/pci0000:00" / address
        (device / "virtio1").mkdir(parents=True)
        for bus, name in (("pci", address), ("virtio", "virtio1")):
            folder = self.root / "bus" / bus / "devices"
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(device if bus == "pci" else device / name)
        members = self.root / "kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(device)
        (device / "iommu_group").symlink_to(members.parent)
        self._bind(address, driver)

    def write(self, path: str, text: str) -> None:
        *_, place, name = path.split("/")
        match name:
            case "driver_override":
                self._override[place] = text.strip()
            case "unbind":
                (self.folder(text) / "driver").unlink()
            case "drivers_probe":
                self._bind(text, self._override.get(text) or "igbvf")
            case _:
                raise AssertionError(path)

    def _bind(self, address: str, driver: str) -> None:
        if driver in self.drivers:
            (self.folder(address) / "driver").symlink_to(f"/sys/bus/pci/drivers/{driver}")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(pci, "SYSFS", str(tmp_path))
    monkeypatch.setattr(pci, "_write", kernel.write)
    groups = vfio_groups.functions_of
    monkeypatch.setattr(endpoint, "functions_of", lambda path: groups(path, tmp_path))
    kernel.add(CARD, "igbvf", "7")
    return kernel


def test_what_a_link_is_all_of(kernel: Kernel) -> None:
    assert pci.function_of("pci", CARD) == CARD
    assert pci.function_of("virtio", "virtio1") == CARD
    assert pci.function_of("", "") == ""
    assert pci.function_of("usb", "1-1") == ""
    assert pci.group_of(CARD) == "7"
    assert pci.group_of(OTHER) == ""


def test_taken_and_given_back(kernel: Kernel) -> None:
    function = LINK.function
    assert function is not None
    device = endpoint.take_function(LINK, function)
    assert device == VfioDevice("vfio-0000-03-10-1", CARD)
    assert pci.driver_of(CARD) == "vfio-pci"
    (part,) = endpoint.parts(LINK, Wiring())
    assert part == Part("pci_driver", {"address": CARD, "driver": "igbvf"})
    for _ in range(2):
        endpoint.remove(part)
        assert pci.driver_of(CARD) == "igbvf"


def test_a_dead_shims_is_given_back(kernel: Kernel) -> None:
    pci.take(CARD)
    undo(Entry(1, "pci_driver", {"address": CARD, "driver": "igbvf"}))
    assert pci.driver_of(CARD) == "igbvf"
    undo(Entry(2, "pci_driver", {"address": OTHER, "driver": "igbvf"}))  # unplugged meanwhile


def test_one_that_has_no_driver_since_a_step_failed(kernel: Kernel) -> None:
    os.unlink(kernel.folder(CARD) / "driver")
    pci.give_back(CARD, "igbvf")
    assert pci.driver_of(CARD) == "igbvf"


def test_without_vfio_it_keeps_its_driver(kernel: Kernel) -> None:
    kernel.drivers.remove("vfio-pci")
    assert LINK.function is not None
    with pytest.raises(Internal, match=rf"eth1 .*{CARD}: vfio-pci does not take it \(modprobe"):
        endpoint.take_function(LINK, LINK.function)
    assert pci.driver_of(CARD) == "igbvf"


def test_a_group_in_use_stays_the_hosts(kernel: Kernel) -> None:
    kernel.add(OTHER, "igbvf", "7")
    assert LINK.function is not None
    with pytest.raises(FailedPrecondition, match=rf"{OTHER} has the driver igbvf"):
        endpoint.take_function(LINK, LINK.function)
    assert pci.driver_of(CARD) == "igbvf"


def test_what_others_gave_to_vms_stays_there(kernel: Kernel) -> None:
    pci.take(CARD)
    function = endpoint.function_at(CARD)
    assert function.driver == "vfio-pci"
    link = Link(1, "eth0", "", "02:00:00:00:00:01", 1500, function=function)
    assert endpoint.parts(link, Wiring()) == []
    assert endpoint.take_function(link, function).address == CARD
    with pytest.raises(FailedPrecondition, match="no IOMMU in use"):
        endpoint.function_at(OTHER)
