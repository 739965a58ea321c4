"""Where every device of a Firecracker VM goes, and the requests that configure it. Pure.

Two ways of hot-plug:

* with PCI (1.16 and later), devices are added and removed; Firecracker takes the lowest
  free slot, so the guest's address is known beforehand;
* without, disks that were there at boot on an empty file ("placeholders") are given
  another file, and their empty one back when they are released.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from vmm import cmdline
from vmm.errors import Conflict, InvalidConfig, LimitExceeded, Unsupported
from vmm.firecracker import bodies
from vmm.firecracker.features import MAX_VCPUS, MEM_BLOCK, MEM_SLOT, MMIO_DEVICES, PCI_SLOTS
from vmm.qemu_only import refuse
from vmm.spec import (
    MIB,
    AttachedDevice,
    BalloonDevice,
    BlockDevice,
    DeviceNode,
    NetDevice,
    PciPath,
    PmemDevice,
    RngDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmm.firecracker.bodies import Body
    from vmm.firecracker.features import Features
    from vmm.spec import Address, Device, VmSpec

GUEST_CID = 3
CMDLINE_MAX = 2048
_ELF = b"\x7fELF"
# Order of the PCI slots at boot.
_BOOT_ORDER = (BalloonDevice, BlockDevice, NetDevice, PmemDevice, VsockDevice, RngDevice)
_HOT = (BlockDevice, NetDevice, PmemDevice)
_COLLECTIONS = {BlockDevice: "drives", NetDevice: "network-interfaces", PmemDevice: "pmem"}


@dataclass(frozen=True)
class Placed:
    """A device with its id in the API and its place.

    Args:
        handle: what the caller knows of it.
        name: its id there.
        slot: its PCI slot; 0 without PCI.
    """

    handle: AttachedDevice
    name: str
    slot: int = 0

    @property
    def target(self) -> str:
        """The API's path of it."""
        return target_of(self.handle.device, self.name)


def target_of(device: Device, name: str) -> str:
    """Return the API's path of a disk, card or pmem device."""
    return f"/{_COLLECTIONS[type(device)]}/{name}"


@dataclass
class Plan:
    """The devices of one VM and the places that are left.

    Args:
        features: what this Firecracker has.
        hot_memory_bytes: size of the virtio-mem device; 0 for none.
    """

    features: Features
    hot_memory_bytes: int
    placed: dict[str, Placed] = field(default_factory=dict)
    free_slots: list[int] = field(default_factory=list)
    pool: dict[str, tuple[bool, str]] = field(default_factory=dict)
    free_placeholders: list[str] = field(default_factory=list)
    map_path: Callable[[Path], str] = str
    _serial: int = 0

    def new_name(self, device: Device) -> str:
        """Return a fresh id: letters and digits, as Firecracker wants them."""
        self._serial += 1
        return f"{type(device).__name__.removesuffix('Device').lower()}{self._serial}"

    def body(self, device: Device, name: str) -> Body:
        """Return the body that makes a disk, card or pmem device."""
        match device:
            case BlockDevice():
                return bodies.drive(device, name, self.map_path(device.path))
            case NetDevice():
                return bodies.interface(device, name, self.features)
            case PmemDevice():
                return bodies.pmem(device, name, self.map_path(device.path), self.features)
        raise Unsupported(f"hot-plug of a {type(device).__name__}", "only at boot")

    def add_pci(self, device: Device) -> Placed:
        """Reserve the slot that a hot-plugged device will get.

        Raises:
            Conflict: the id is in use.
            LimitExceeded: no slot is free.
        """
        self._check_id(device)
        if not self.free_slots:
            raise LimitExceeded(f"{device.id}: all {PCI_SLOTS} PCI slots are in use")
        slot = self.free_slots.pop(0)
        handle = AttachedDevice(device, PciPath(((slot, 0),)), hot=True)
        placed = self.placed[device.id] = Placed(handle, self.new_name(device), slot)
        return placed

    def add_to_pool(self, device: BlockDevice) -> Placed:
        """Reserve a placeholder for a disk.

        Raises:
            Conflict: the id is in use.
            InvalidConfig: it asks for what only a disk of its own could have.
            LimitExceeded: no placeholder is free.
        """
        self._check_id(device)
        bodies.check_disk(device)
        if device.aio == "io_uring":
            raise InvalidConfig(f"{device.id}: a placeholder's disk does its I/O by threads")
        for name in self.free_placeholders:
            read_only, node = self.pool[name]
            if read_only == device.read_only:
                self.free_placeholders.remove(name)
                handle = AttachedDevice(device, DeviceNode(node), hot=True)
                placed = self.placed[device.id] = Placed(handle, name)
                return placed
        kind = "read-only" if device.read_only else "writable"
        total = sum(read_only == device.read_only for read_only, _ in self.pool.values())
        detail = f"all {total} {kind} placeholder drives are in use"
        raise LimitExceeded(
            f"{device.id}: {detail}; {self.features.vmm} has {len(self.pool)} in all "
            "(hotplug_slots, and what its MMIO devices leave)"
        )

    def _check_id(self, device: Device) -> None:
        if device.id in self.placed:
            raise Conflict(f"the device id {device.id} is in use")

    def release(self, placed: Placed) -> None:
        """Give a device's id and place back, once it is really gone."""
        if self.placed.get(placed.handle.id) is not placed:
            return
        del self.placed[placed.handle.id]
        if placed.name in self.pool:
            self.free_placeholders.append(placed.name)
        elif placed.slot:
            self.free_slots = sorted([*self.free_slots, placed.slot])


def check(spec: VmSpec, features: Features) -> None:
    """Raise unless the spec is one that this Firecracker can run.

    Raises:
        InvalidConfig, Unsupported: naming version and feature.
    """
    features.check()
    refuse(spec, features.vmm)
    for what, path in (("kernel", spec.kernel), ("initrd", spec.initrd)):
        if path is not None and not path.is_file():
            raise InvalidConfig(f"{what}: no file at {path}")
    if not features.has("bzimage") and not _is_elf(spec.kernel):
        raise InvalidConfig(
            f"{features.vmm} starts uncompressed kernels (vmlinux) only, {spec.kernel} is none; "
            f"compressed ones need {features.since('bzimage')}"
        )
    if not 1 <= spec.vcpus <= MAX_VCPUS:
        raise InvalidConfig(f"{features.vmm}: 1 to {MAX_VCPUS} virtual CPUs, not {spec.vcpus}")
    if spec.vcpu_limit > spec.vcpus:
        raise Unsupported(
            "vcpu_up", "Firecracker can't add virtual CPUs: max_vcpus must be 0", features.vmm
        )
    if spec.memory_limit > spec.memory_bytes:
        if not features.has("memory_hotplug"):
            raise Unsupported("mem_up", features.since("memory_hotplug"), features.vmm)
        if spec.memory_hotplug != "virtio-mem":
            raise InvalidConfig("Firecracker adds memory by virtio-mem only, not by DIMMs")
    if spec.channel != "vsock":
        raise Unsupported(
            "serial_agent", "Firecracker has no virtio-serial: set channel to vsock", features.vmm
        )
    for device in (spec.image, *spec.devices):
        _check_kind(device, features)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ELF)) == _ELF


def _check_kind(device: Device | None, features: Features) -> None:
    capability = {
        "FsDevice": "fs_share",
        "NinePDevice": "ninep",
        "VfioDevice": "vfio_cold",
        "SerialDevice": "serial_agent",
        "PanicDevice": "guest_panic_event",
    }.get(type(device).__name__)
    if capability is not None:
        why = features.capabilities().why_not.get(capability, "")
        assert device is not None
        raise Unsupported(capability, f"{device.id}: {why}", features.vmm)


def make_plan(spec: VmSpec, features: Features) -> Plan:
    """Place everything a VM has at boot, and its placeholders.

    Raises:
        InvalidConfig, Unsupported: the spec asks for what this version can't do.
        Conflict, LimitExceeded: two ids alike, or too many devices.
    """
    check(spec, features)
    hot_memory = -(-(spec.memory_limit - spec.memory_bytes) // MEM_SLOT) * MEM_SLOT
    plan = Plan(features, hot_memory)
    devices = [*([spec.image] if spec.image is not None else []), *spec.devices]
    if not any(isinstance(device, VsockDevice) for device in devices):
        devices.append(VsockDevice())
    devices.sort(key=lambda device: _BOOT_ORDER.index(type(device)))
    for device in devices:
        plan._check_id(device)
        if isinstance(device, (BalloonDevice, RngDevice, VsockDevice)):
            kind = type(device)
            if any(isinstance(p.handle.device, kind) for p in plan.placed.values()):
                raise InvalidConfig(f"{device.id}: {features.vmm} has one {kind.__name__} only")
        plan.placed[device.id] = Placed(AttachedDevice(device, None, hot=False), "")
    count = len(devices) + bool(hot_memory)
    limit = PCI_SLOTS if features.pci else MMIO_DEVICES
    if count > limit:
        places = "PCI slots" if features.pci else "MMIO devices"
        raise LimitExceeded(f"{count} devices, but {features.vmm} has {limit} {places}")
    hot_pci = features.pci and features.has("pci_hotplug")
    pool = 0 if hot_pci else min(spec.hotplug_slots, limit - count)
    _name_and_address(plan, pool)
    if hot_pci:
        plan.free_slots = list(range(count + 1, PCI_SLOTS + 1))
    _add_pool(plan, pool)
    return plan


def _name_and_address(plan: Plan, pool: int) -> None:
    disks = pmems = slot = 0
    for key, placed in list(plan.placed.items()):
        device = placed.handle.device
        if pool and not isinstance(device, (BalloonDevice, BlockDevice)):
            slot, pool = slot + pool, 0  # placeholders come after the other disks
        slot += 1
        address: Address | None = None
        if plan.features.pci:
            address = PciPath(((slot, 0),))
        elif isinstance(device, BlockDevice):
            address = DeviceNode(_disk_node(disks))
        elif isinstance(device, PmemDevice):
            address = DeviceNode(f"/dev/pmem{pmems}")
        disks += isinstance(device, BlockDevice)
        pmems += isinstance(device, PmemDevice)
        plan.placed[key] = replace(
            placed,
            handle=AttachedDevice(device, address, hot=False),
            name=plan.new_name(device),
            slot=slot if plan.features.pci else 0,
        )


def _disk_node(number: int) -> str:
    return f"/dev/vd{string.ascii_lowercase[number]}"


def _add_pool(plan: Plan, count: int) -> None:
    first = sum(isinstance(placed.handle.device, BlockDevice) for placed in plan.placed.values())
    for number in range(count):
        name = f"placeholder{number}"
        # A disk stays writable or not as it was at boot, so there are some of each.
        plan.pool[name] = (number % 2 == 1, _disk_node(first + number))
    plan.free_placeholders = list(plan.pool)


Request = tuple[Literal["PUT", "PATCH"], str, "Body"]


@dataclass(frozen=True)
class Inside:
    """Sockets, pipes and files of ours as Firecracker sees them.

    Args:
        vsock: the hybrid vsock's socket.
        serial_out: where the console goes; empty for nowhere.
        metrics: where metrics go.
        placeholder: the empty file that free placeholders are on.
    """

    vsock: str = ""
    serial_out: str = ""
    metrics: str = ""
    placeholder: str = ""


def boot_requests(spec: VmSpec, plan: Plan, inside: Inside) -> list[Request]:
    """Return the requests that configure a VM before it starts, in order.

    Args:
        spec: the VM.
        plan: its devices, placed.
        inside: what it is to use of ours.
    """
    features = plan.features
    requests: list[Request] = [
        ("PUT", "/metrics", {"metrics_path": inside.metrics}),
        ("PUT", "/machine-config", _machine_config(spec)),
        ("PUT", "/boot-source", _boot_source(spec, plan)),
    ]
    if inside.serial_out and features.has("serial_out"):
        requests.append(("PUT", "/serial", {"serial_out_path": inside.serial_out}))
    requests += [_device_request(placed, plan, inside.vsock) for placed in plan.placed.values()]
    for name, (read_only, _) in plan.pool.items():
        body = {
            "drive_id": name,
            "is_root_device": False,
            "path_on_host": inside.placeholder,
            "is_read_only": read_only,
            "cache_type": "Writeback",
            "io_engine": "Sync",
        }
        requests.append(("PUT", f"/drives/{name}", body))
    if plan.hot_memory_bytes:
        body = {
            "total_size_mib": plan.hot_memory_bytes // MIB,
            "slot_size_mib": MEM_SLOT // MIB,
            "block_size_mib": MEM_BLOCK // MIB,
        }
        requests.append(("PUT", "/hotplug/memory", body))
    return requests


def _device_request(placed: Placed, plan: Plan, vsock: str) -> Request:
    match placed.handle.device:
        case VsockDevice() as device:
            return ("PUT", "/vsock", {"guest_cid": device.cid or GUEST_CID, "uds_path": vsock})
        case RngDevice():
            return ("PUT", "/entropy", {})
        case BalloonDevice() as device:
            return ("PUT", "/balloon", bodies.balloon(device, plan.features))
        case device:
            return ("PUT", placed.target, plan.body(device, placed.name))


def _machine_config(spec: VmSpec) -> Body:
    body: Body = {"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_bytes // MIB}
    if spec.hugepages:
        body["huge_pages"] = "2M"
    return body


def _boot_source(spec: VmSpec, plan: Plan) -> Body:
    wanted = {"reboot": "k", "panic": "-1"}  # a reset ends the VM
    if not plan.features.pci:
        wanted["pci"] = "off"
    line = cmdline.merge(spec, wanted)
    if len(line.encode()) >= CMDLINE_MAX:
        raise InvalidConfig(f"the kernel command line is over {CMDLINE_MAX - 1} bytes: {line}")
    body: Body = {"kernel_image_path": plan.map_path(spec.kernel), "boot_args": line}
    if spec.initrd is not None:
        body["initrd_path"] = plan.map_path(spec.initrd)
    return body
