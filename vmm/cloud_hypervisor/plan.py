"""The devices of a Cloud Hypervisor VM, and the configuration it is created with. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmm import cmdline
from vmm.cloud_hypervisor import bodies
from vmm.cloud_hypervisor.features import MAX_VCPUS, MEM_ALIGNMENT, PCI_SLOTS
from vmm.errors import Conflict, InvalidConfig, LimitExceeded, Unsupported
from vmm.qemu_only import refuse
from vmm.spec import (
    MIB,
    AttachedDevice,
    BalloonDevice,
    NetDevice,
    PanicDevice,
    PciPath,
    RngDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmm.cloud_hypervisor.bodies import Body
    from vmm.cloud_hypervisor.features import Features
    from vmm.spec import Device, VmSpec

GUEST_CID = 3
_RANDOM = "/dev/urandom"
_SINGLE = (RngDevice, BalloonDevice, PanicDevice, VsockDevice)


@dataclass(frozen=True)
class Placed:
    """A device with its id in the API and its configuration."""

    handle: AttachedDevice
    name: str
    body: Body


@dataclass(frozen=True)
class Landlock:
    """The kernel's file sandbox for the VMM, which then opens only what the VM is made of.

    Args:
        paths: further files and directories, with ``r`` or ``rw``, for what is to be
            hot-plugged; there is no adding to them later.
    """

    paths: tuple[tuple[Path, str], ...] = ()

    def covers(self, path: Path) -> bool:
        """Whether a hot-plugged file is in one of the paths."""
        return any(path == allowed or allowed in path.parents for allowed, _ in self.paths)


@dataclass
class Plan:
    """The devices of one VM.

    Args:
        spec: the VM.
        features: what this Cloud Hypervisor has.
        hot_memory_bytes: memory that may be added.
    """

    spec: VmSpec
    features: Features
    hot_memory_bytes: int
    placed: dict[str, Placed] = field(default_factory=dict)
    _serial: int = 0

    def add(self, device: Device, *, hot: bool) -> Placed:
        """Take a device's id and a slot.

        Raises:
            Conflict: the id is in use.
            LimitExceeded: no slot is free.
            InvalidConfig, Unsupported: see :func:`vmm.cloud_hypervisor.bodies.build`.
        """
        if device.id in self.placed:
            raise Conflict(f"the device id {device.id} is in use")
        if self.slots_in_use >= PCI_SLOTS:
            raise LimitExceeded(f"{device.id}: all {PCI_SLOTS} PCI slots are in use")
        self._serial += 1
        name = f"{type(device).__name__.removesuffix('Device').lower()}{self._serial}"
        single = isinstance(device, _SINGLE)
        body = {} if single else bodies.build(device, name, self.spec, self.features)
        placed = Placed(AttachedDevice(device, None, hot=hot), name, body)
        self.placed[device.id] = placed
        return placed

    @property
    def slots_in_use(self) -> int:
        """PCI slots taken, those of devices that are being removed among them."""
        on_pci = sum(not isinstance(p.handle.device, PanicDevice) for p in self.placed.values())
        # The console device takes a slot even when it is off; so does virtio-mem.
        return on_pci + 1 + bool(self.hot_memory_bytes)

    def put_at(self, placed: Placed, bdf: str) -> AttachedDevice:
        """Note where a device is, as the VMM says; return the new handle."""
        address = pci_path(bdf)
        handle = replace(placed.handle, address=address)
        self.placed[handle.id] = replace(placed, handle=handle)
        return handle

    def release(self, name: str) -> str | None:
        """Forget a device that is gone; return its id, None when it is unknown."""
        for key, placed in self.placed.items():
            if placed.name == name:
                del self.placed[key]
                return key
        return None


def pci_path(bdf: str) -> PciPath | None:
    """Return the guest's address of ``0000:00:05.0``; None unless it is on segment 0's bus."""
    segment, _, rest = bdf.partition(":")
    bus, _, slot_function = rest.partition(":")
    slot, _, function = slot_function.partition(".")
    try:
        if int(segment, 16) or int(bus, 16):
            return None
        return PciPath(((int(slot, 16), int(function, 16)),))
    except ValueError:
        return None


def check(spec: VmSpec, features: Features) -> None:
    """Raise unless the spec is one that this Cloud Hypervisor can run.

    Raises:
        InvalidConfig, Unsupported: naming version and feature.
    """
    features.check()
    refuse(spec, features.vmm)
    for what, path in (("kernel", spec.kernel), ("initrd", spec.initrd)):
        if path is not None and not path.is_file():
            raise InvalidConfig(f"{what}: no file at {path}")
    if not 1 <= spec.vcpus <= spec.vcpu_limit <= MAX_VCPUS:
        raise InvalidConfig(f"{features.vmm}: 1 to {MAX_VCPUS} virtual CPUs")
    if spec.channel != "vsock":
        detail = "Cloud Hypervisor has no virtio-serial: set channel to vsock"
        raise Unsupported("serial_agent", detail, features.vmm)
    capability = {"NinePDevice": "ninep", "SerialDevice": "serial_agent"}
    for device in spec.devices:
        if name := capability.get(type(device).__name__):
            why = features.capabilities().why_not[name]
            raise Unsupported(name, f"{device.id}: {why}", features.vmm)


def make_plan(spec: VmSpec, features: Features) -> Plan:
    """Place everything a VM has at boot.

    Raises:
        InvalidConfig, Unsupported: the spec asks for what this version can't do.
        Conflict, LimitExceeded: two ids alike, or too many devices.
    """
    check(spec, features)
    hot_memory = -(-(spec.memory_limit - spec.memory_bytes) // MEM_ALIGNMENT) * MEM_ALIGNMENT
    plan = Plan(spec, features, hot_memory)
    devices = [*([spec.image] if spec.image is not None else []), *spec.devices]
    if not any(isinstance(device, VsockDevice) for device in devices):
        devices.append(VsockDevice())
    for kind in _SINGLE:
        if sum(isinstance(device, kind) for device in devices) > 1:
            raise InvalidConfig(f"{features.vmm} has one {kind.__name__} only")
    for device in devices:
        plan.add(device, hot=False)
    return plan


def vm_config(plan: Plan, *, vsock: Path, console: Path | None, landlock: Landlock | None) -> Body:
    """Return the body of ``vm.create``.

    Cards on descriptors are not in it: those are added before the boot, with them.

    Args:
        plan: the VM's devices.
        vsock: where the hybrid vsock listens.
        console: where the guest's console goes; None for nowhere.
        landlock: confine the VMM to the VM's files.
    """
    spec = plan.spec
    payload: Body = {
        "kernel": str(spec.kernel),
        # A reset ends the VM, so a panicked guest must really reset.
        "cmdline": cmdline.merge(spec, {"panic": "-1", "reboot": "t"}),
    }
    if spec.initrd is not None:
        payload["initramfs"] = str(spec.initrd)
    serial: Body = {"mode": "Null"}
    if console is not None:
        serial = {"mode": "File", "file": str(console)}
    config: Body = {
        "cpus": {"boot_vcpus": spec.vcpus, "max_vcpus": spec.vcpu_limit},
        "memory": _memory(plan),
        "payload": payload,
        "serial": serial,
        "console": {"mode": "Off"},
    }
    for placed in plan.placed.values():
        match placed.handle.device:
            case VsockDevice() as device:
                config["vsock"] = {"cid": device.cid or GUEST_CID, "socket": str(vsock)}
            case RngDevice():
                config["rng"] = {"src": _RANDOM}
            case PanicDevice():
                config["pvpanic"] = True
            case BalloonDevice() as device:
                config["balloon"] = {
                    "size": 0,
                    "deflate_on_oom": device.deflate_on_oom,
                    "free_page_reporting": device.free_page_reporting,
                }
            case NetDevice(fds=fds) if fds:
                pass
            case device:
                member = bodies.COLLECTIONS[type(device)][0]
                config.setdefault(member, []).append(placed.body)
    if landlock is not None:
        config["landlock_enable"] = True
        rules = [{"path": str(path), "access": access} for path, access in landlock.paths]
        if rules:
            config["landlock_rules"] = rules
    return config


def _memory(plan: Plan) -> Body:
    spec = plan.spec
    memory: Body = {"size": spec.memory_bytes, "shared": spec.needs_shared_memory}
    if plan.hot_memory_bytes:
        memory["hotplug_size"] = plan.hot_memory_bytes
        dimms = spec.memory_hotplug == "dimm"
        memory["hotplug_method"] = "Acpi" if dimms else "VirtioMem"
    if spec.hugepages:
        memory["hugepages"] = True
        memory["hugepage_size"] = 2 * MIB
    return memory


def addresses(info: Mapping[str, object]) -> dict[str, str]:
    """Return the bus address of each device that ``vm.info`` tells one of, by id."""
    tree = info.get("device_tree")
    found = {}
    for name, node in tree.items() if isinstance(tree, dict) else ():
        if isinstance(node, dict) and node.get("pci_bdf"):
            found[str(name)] = str(node["pci_bdf"])
    # A virtio device is the child of its transport, which is what has the address.
    for name, node in tree.items() if isinstance(tree, dict) else ():
        for child in node.get("children", ()) if isinstance(node, dict) else ():
            if name in found:
                found.setdefault(str(child), found[name])
    return found
