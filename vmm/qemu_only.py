"""What of a VM's specification only QEMU can do, refused by the other backends. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.arch import architecture
from vmm.errors import InvalidConfig, Unsupported
from vmm.spec import MIB, BlockDevice, PmemDevice, VhostUserBlockDevice

if TYPE_CHECKING:
    from vmm.spec import VmSpec


def refuse(spec: VmSpec, vmm: str) -> None:
    """Raise when a specification asks for what only QEMU does here.

    Args:
        spec: the VM.
        vmm: name and version of the VMM that was asked.

    Raises:
        InvalidConfig, Unsupported: naming it and the feature.
    """
    asked = {
        "numa": bool(spec.numa),
        "iommu": spec.iommu,
        "scsi": spec.scsi,
        "panic_dump": spec.panic_dump is not None,
        "user": spec.user is not None,
        "memory_file": spec.memory_file is not None,
        "cpu_model": bool(spec.cpu_model),
    }
    for name, wanted in asked.items():
        if wanted:
            raise InvalidConfig(f"{vmm}: {name} is possible with QEMU only")
    if spec.accel == "tcg":
        raise InvalidConfig(f"{vmm} needs KVM; only QEMU emulates")
    if spec.arch and architecture(spec.arch) is not architecture():
        raise InvalidConfig(f"{vmm} runs guests of the host's architecture; only QEMU emulates")
    if spec.memory_bytes < MIB or spec.memory_bytes % MIB:
        raise InvalidConfig(f"{vmm}: a VM needs whole MiB of memory")
    for device in (spec.image, *spec.devices):
        match device:
            case VhostUserBlockDevice():
                raise Unsupported("vhost-user disks", f"{device.id}: QEMU has them", vmm)
            case BlockDevice(bus="scsi"):
                raise Unsupported("scsi disks", f"{device.id}: QEMU has them", vmm)
            case PmemDevice(nvdimm=True):
                raise Unsupported("nvdimm", f"{device.id}: virtio-pmem is what there is", vmm)
