"""QEMU's machine types: how devices reach the guest, and what each machine can't do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from vmm.arch import Architecture, architecture
from vmm.errors import InvalidConfig

if TYPE_CHECKING:
    from vmm.spec import VmSpec

Transport = Literal["pci", "mmio", "ccw"]
Places = Literal["bridges", "root ports", "root bus", "device numbers", "none"]


@dataclass(frozen=True)
class Machine:
    """One machine type of one architecture.

    Args:
        options: of ``-M``, the type's own name first.
        transport: how virtio devices reach the guest.
        bus: the root bus of PCI.
        first_slot: the first slot of it that is free at boot.
        places: where devices that come later go.
        missing: what would allow such devices, where there is no place for them.
        scsi: it has a SCSI controller in any case, for the disks that come later.
        grows: CPUs and memory can be added.
        nvdimm: it has slots for persistent memory modules.
        iommu: it can have Intel's IOMMU.
        arguments: further options of the command line.
        emulated: further options of ``-M`` without KVM.
    """

    options: str
    transport: Transport = "pci"
    bus: str = "pcie.0"
    first_slot: int = 1
    places: Places = "root ports"
    missing: str = ""
    scsi: bool = False
    grows: bool = False
    nvdimm: bool = False
    iommu: bool = False
    arguments: tuple[str, ...] = ()
    emulated: str = ""


_PC = "vmport=off,smbus=off,sata=off,usb=off"
# Emulation has none of the mitigations that the machine would promise the guest.
_NO_MITIGATIONS = "cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"

_MACHINES: Mapping[tuple[str, str], Machine] = MappingProxyType(
    {
        ("x86_64", "q35"): Machine(
            f"q35,{_PC}", places="bridges", grows=True, nvdimm=True, iommu=True
        ),
        # The host bridge and the ISA bridge have the first slots.
        ("x86_64", "pc"): Machine(
            f"pc,{_PC}", bus="pci.0", first_slot=2, places="root bus", grows=True, nvdimm=True
        ),
        # Without qboot and with option ROMs off the kernel is never started.
        ("x86_64", "microvm"): Machine(
            "microvm,x-option-roms=off,rtc=on,isa-serial=on",
            transport="mmio",
            places="none",
            missing="machine type q35",
            arguments=("-bios", "qboot.rom", "-global", "virtio-mmio.force-legacy=false"),
        ),
        ("aarch64", "virt"): Machine("virt,gic-version=max"),
        ("riscv64", "virt"): Machine(
            "virt",
            places="none",
            missing="a guest kernel with PCI hot-plug, which Debian's is built without",
            scsi=True,
        ),
        # A device that comes later must be put into the guest's device tree by a program
        # of the guest (drmgr). The full firmware takes ten seconds to look for disks.
        ("ppc64le", "pseries"): Machine(
            "pseries,x-vof=on",
            bus="pci.0",
            places="none",
            missing="a guest that has drmgr, on pseries",
            scsi=True,
            arguments=("-bios", "vof.bin"),
            emulated=_NO_MITIGATIONS,
        ),
        ("s390x", "s390-ccw-virtio"): Machine(
            "s390-ccw-virtio", transport="ccw", places="device numbers"
        ),
    }
)


def machine_of(spec: VmSpec) -> Machine:
    """Return what is particular about a VM's machine type; see :func:`find_machine`."""
    return find_machine(architecture(spec.arch), spec.machine)


def find_machine(arch: Architecture, name: str) -> Machine:
    """Return what is particular about a machine type.

    Raises:
        InvalidConfig: the architecture has no such machine type.
    """
    machine = _MACHINES.get((arch.name, name))
    if machine is None:
        raise InvalidConfig(f"machine {name}: known for {arch.name} are {', '.join(arch.machines)}")
    return machine
