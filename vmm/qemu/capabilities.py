"""What a VM of this spec can do on this QEMU."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal

from vmm.arch import architecture
from vmm.hypervisor import Capabilities
from vmm.qemu.machines import machine_of
from vmm.qemu.memory import hot_memory_bytes
from vmm.qemu.plan import MMIO_TRANSPORTS
from vmm.qemu.steps import virtio_driver
from vmm.spec import MIB, BalloonDevice, FsDevice, NinePDevice, PanicDevice

if TYPE_CHECKING:
    from vmm.qemu.accel import Accelerator
    from vmm.qemu.machines import Machine, Transport
    from vmm.qemu.probe import QemuFeatures
    from vmm.spec import VmSpec

# QEMU can't migrate a shared file system, whose state is the host's.
UNSAVED = (FsDevice, NinePDevice)
NOT_SAVED = "a VM without shared directories"
_OTHER_ORDER = "a virtiofsd that speaks the guest's byte order; 9p does"
_VIRTIO_MEM_BLOCK = 2 * MIB
_DIMM_BLOCK = 128 * MIB
_COLD_DEVICES = {"pci": 30, "mmio": MMIO_TRANSPORTS, "ccw": 255}
_MAX_VCPUS = 255
_NOT_YET = (*("pmem_hot", "restore_overrides", "lazy_restore", "live_migration", "jail"),)
_NEED_PCI = (
    *("block_hot", "net_hot", "fs_hot", "vcpu_up", "vcpu_down", "guest_panic_event"),
    *("pmem_cold", "vfio_cold", "vfio_hot"),
)
# Flags and what the spec has to have for them.
_ASKED_FOR = {
    "balloon": "a BalloonDevice in the spec",
    "free_page_reporting": "a BalloonDevice with it in the spec",
    "guest_panic_event": "a PanicDevice in the spec",
    "hugepages": "hugepages in the spec",
    "rootless": "a user in the spec",
    "seccomp": "sandbox_seccomp in the spec",
    "fs_hot": "shared_memory in the spec",
    "console": "console in the spec",
    "snapshot": NOT_SAVED,
    # What no spec can ask for.
    "firmware": "only kernels are started here",
    "guest_rescan_needed": "the guest is told of a new device",
    "guest_remove_first": "the guest is asked to let go",
}
_NEED_DEVICE = {
    "fs_share": "vhost-user-fs",
    "ninep": "virtio-9p",
    "pmem_cold": "virtio-pmem-pci",
    "vfio_cold": "vfio-pci",
    "vfio_hot": "vfio-pci",
    "vsock": "vhost-user-vsock",
}


def capabilities(spec: VmSpec, features: QemuFeatures, accelerator: Accelerator) -> Capabilities:
    """Return what is possible, from what was asked for and what QEMU has."""
    machine = machine_of(spec)
    transport = machine.transport
    pci = transport == "pci"
    hot = machine.places != "none" and spec.hotplug_slots + spec.root_ports > 0
    hot_memory = hot_memory_bytes(spec) > 0
    arch = architecture(spec.arch)
    # Its messages are in the guest's byte order, which virtiofsd takes to be the host's.
    fs_share = _has(features, "fs", transport, "vhost-user") and arch.byte_order == sys.byteorder
    balloons = [device for device in spec.devices if isinstance(device, BalloonDevice)]
    return Capabilities(
        transport=transport,
        max_vcpus=_MAX_VCPUS,
        max_devices=_COLD_DEVICES[transport],
        fs_share=fs_share,
        fs_hot=fs_share and hot and spec.needs_shared_memory,
        ninep=_has(features, "9p", transport),
        block_hot="add_remove" if hot or spec.scsi or machine.scsi else "none",
        block_resize=True,
        block_serial=True,
        net_hot=hot,
        nic_by_fd=True,
        multi_queue=True,
        vcpu_up=spec.vcpu_limit > spec.vcpus,
        vcpu_down=spec.vcpu_limit > spec.vcpus and _can_remove_cpus(features, accelerator),
        mem_up=hot_memory,
        mem_down=hot_memory,
        mem_granule=_VIRTIO_MEM_BLOCK if spec.memory_hotplug == "virtio-mem" else _DIMM_BLOCK,
        mem_max=spec.memory_bytes + hot_memory_bytes(spec),
        balloon=bool(balloons),
        free_page_reporting=any(balloon.free_page_reporting for balloon in balloons),
        pause=True,
        snapshot="none" if any(isinstance(d, UNSAVED) for d in spec.devices) else "full",
        vsock=_vsock(features, transport),
        serial_agent=True,
        console=spec.console,
        initrd=True,
        event_stream="rich",
        reset_semantics="exit",
        guest_panic_event=arch.reports_panic
        or any(isinstance(device, PanicDevice) for device in spec.devices),
        acpi_shutdown=True,
        pmem_cold=pci and "virtio-pmem-pci" in features.devices,
        vfio_cold=pci and "vfio-pci" in features.devices,
        vfio_hot=hot and "vfio-pci" in features.devices,
        rate_limit="dynamic",
        counters=True,
        hugepages=spec.hugepages,
        rootless=spec.user is not None,
        seccomp=features.sandbox and spec.sandbox_seccomp,
        vmm=f"QEMU {features.version_text}",
        why_not=_why_not(spec, features, machine, hot_memory=hot_memory),
    )


def _has(features: QemuFeatures, kind: str, transport: Transport, family: str = "virtio") -> bool:
    # A QEMU with a device on PCI has it on MMIO too.
    place: Transport = "pci" if transport == "mmio" else transport
    return virtio_driver(kind, place, family) in features.devices


def _why_not(
    spec: VmSpec, features: QemuFeatures, machine: Machine, *, hot_memory: bool
) -> dict[str, str]:
    """Say for each flag what would turn it on; read only where it is off."""
    why_not = dict.fromkeys(_NOT_YET, "not with QEMU yet") | _ASKED_FOR
    why_not |= {name: f"a QEMU with {device}" for name, device in _NEED_DEVICE.items()}
    if not features.sandbox:
        why_not["seccomp"] = "a QEMU with -sandbox"
    if machine.transport == "mmio":
        why_not |= dict.fromkeys(_NEED_PCI, machine.missing)
    elif machine.places == "none":
        why_not |= dict.fromkeys(("net_hot", "fs_hot", "vfio_hot"), machine.missing)
    elif not spec.hotplug_slots:
        why_not |= dict.fromkeys(("block_hot", "net_hot", "fs_hot"), "hotplug_slots over 0")
    if machine.transport == "ccw":
        why_not |= dict.fromkeys(("pmem_cold", "vfio_cold", "vfio_hot", "firmware"), "PCI")
    if architecture(spec.arch).byte_order != sys.byteorder:
        why_not |= dict.fromkeys(("fs_share", "fs_hot"), _OTHER_ORDER)
    if not hot_memory:
        why_not |= dict.fromkeys(("mem_up", "mem_down"), "max_memory_bytes over memory_bytes")
    if not machine.grows:
        grow = ("mem_up", "mem_down", "vcpu_up", "vcpu_down")
        why_not |= dict.fromkeys(grow, f"another machine than {spec.machine}")
    elif spec.vcpu_limit == spec.vcpus:
        why_not |= dict.fromkeys(("vcpu_up", "vcpu_down"), "max_vcpus over vcpus")
    else:
        why_not["vcpu_down"] = "KVM, or QEMU 10 or later"
    return why_not


def _can_remove_cpus(features: QemuFeatures, accelerator: Accelerator) -> bool:
    # Emulation in 7.2 corrupts its memory when a CPU is added after one was removed;
    # 10.0 was tried and does not.
    return accelerator.name == "kvm" or features.version >= (10, 0, 0)


def _vsock(features: QemuFeatures, transport: Transport) -> Literal["none", "hybrid", "vhost"]:
    accessible = os.access("/dev/vhost-vsock", os.R_OK | os.W_OK)
    if accessible and _has(features, "vsock", transport, "vhost"):
        return "vhost"
    return "hybrid" if _has(features, "vsock", transport, "vhost-user") else "none"
