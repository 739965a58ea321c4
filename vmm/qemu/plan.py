"""Where every device of a VM goes: PCI slots, root ports, MMIO transports, CCW numbers.

The backend places each device itself, so it knows the guest's view of the address
without asking, and slots stay reserved until a device is really gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmm.errors import Conflict, InvalidConfig, LimitExceeded
from vmm.qemu import recipe
from vmm.qemu.machines import machine_of
from vmm.qemu.places import Place, Places, choose, make_places
from vmm.spec import (
    AttachedDevice,
    BlockDevice,
    CcwAddress,
    MmioIndex,
    NetDevice,
    PciPath,
    ScsiAddress,
    SerialDevice,
    VfioDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from vmm.qemu.machines import Transport
    from vmm.qemu.steps import Recipe
    from vmm.spec import Address, Device, VmSpec

AGENT_PORT_ID = "agent"
AGENT_PORT_NAME = "org.katapy.agent.0"
SCSI_ID = "scsi0"
SCSI_TARGETS = 256
MMIO_TRANSPORTS = 24


@dataclass(frozen=True)
class Placed:
    """A device with its recipe and its place."""

    handle: AttachedDevice
    recipe: Recipe
    fds: tuple[int, ...] = ()
    place: Place | None = None


@dataclass
class Plan:
    """The devices of one VM and the places that are left.

    Args:
        transport: how virtio devices reach the guest.
        bus: the root bus.
        hot_disks_on_scsi: the machine has no other place for a disk that comes later.
        iommu: devices of the root bus are behind an IOMMU, which old-style virtio is not.
    """

    transport: Transport
    placed: dict[str, Placed] = field(default_factory=dict)
    places: Places = field(default_factory=lambda: Places(()))
    free_places: list[Place] = field(default_factory=list)
    bus: str = "pcie.0"
    iommu: bool = False
    controller_slot: int = 0
    scsi_slot: int = 0
    hot_disks_on_scsi: bool = False
    free_targets: list[int] = field(default_factory=list)
    _next_slot: int = 1
    _next_name: int = 0

    def take_slot(self, what: str) -> int:
        """Reserve a slot for a device that is there at boot.

        Raises:
            LimitExceeded: none is left.
        """
        slot = self._next_slot
        limit = MMIO_TRANSPORTS + 1 if self.transport == "mmio" else self.places.first_taken
        if slot >= limit:
            raise LimitExceeded(f"{what}: no slot is left for a device at boot")
        self._next_slot += 1
        return slot

    def new_name(self, device: Device) -> str:
        """Return a fresh QEMU id; ours, as QEMU's have rules that the caller's need not."""
        self._next_name += 1
        kind = type(device).__name__.removesuffix("Device").lower()
        return f"{kind}{self._next_name}"

    def add_cold(self, device: Device) -> None:
        """Place a device that is there at boot.

        Raises:
            Conflict: the id is used twice.
            LimitExceeded: no slot is left.
        """
        if device.id in self.placed:
            raise Conflict(f"two devices have the id {device.id}")
        fds = own_fds(device)
        made = recipe.build(
            device,
            self.new_name(device),
            transport=self.transport,
            fds=tuple(str(fd) for fd in fds),
        )
        address: Address | None = None
        if _is_scsi(device):
            made, address = self._on_scsi(made, device)
        elif port := self._free_port(device):
            made, address = made.at(**qemu_place(port.bus, port.addr)), port.path
        elif made.needs_slot:
            slot = self.take_slot(device.id)
            made = made.at(**self.cold_place(slot))
            match self.transport:
                case "pci":
                    made = made.behind_iommu() if self.iommu else made
                    address = PciPath(((slot, 0),))
                case "ccw":
                    address = CcwAddress(slot)
                case "mmio":
                    address = MmioIndex(slot - 1)
        self.placed[device.id] = Placed(AttachedDevice(device, address, hot=False), made, fds)

    def cold_place(self, slot: int) -> dict[str, str]:
        """Return how QEMU is told of a place that :meth:`take_slot` gave."""
        match self.transport:
            case "pci":
                return qemu_place(self.bus, slot)
            case "ccw":
                return qemu_place("", slot)
            case "mmio":
                return {}  # in the order of the command line

    def _free_port(self, device: Device) -> Place | None:
        """Take a root port for a PCI Express device of the host; None when there is none."""
        if not isinstance(device, VfioDevice):
            return None
        port = next((place for place in self.free_places if place.root_port), None)
        if port is not None:
            self.free_places.remove(port)
        return port

    def add_hot(self, device: Device, fds: tuple[str, ...]) -> Placed:
        """Reserve a root port for a device and return how to make it there.

        Args:
            device: what to attach.
            fds: ``getfd`` names of its descriptors.

        Raises:
            Conflict: the id is in use.
            LimitExceeded: no port is free.
        """
        if device.id in self.placed:
            raise Conflict(f"the device id {device.id} is in use")
        if isinstance(device, BlockDevice) and self.hot_disks_on_scsi:
            device = replace(device, bus="scsi")
        if _is_scsi(device):
            made = recipe.build(device, self.new_name(device), transport=self.transport)
            made, address = self._on_scsi(made, device)
            placed = Placed(AttachedDevice(device, address, hot=True), made)
            self.placed[device.id] = placed
            return placed
        made = recipe.build(device, self.new_name(device), transport=self.transport, fds=fds)
        place = choose(self.free_places, device)
        if place is None:
            count = len(self.places.free)
            raise LimitExceeded(f"{device.id}: all {count} places for hot-plug are in use")
        handle = AttachedDevice(device, place.path, hot=True)
        placed = Placed(handle, made.at(**qemu_place(place.bus, place.addr)), place=place)
        self.placed[device.id] = placed
        return placed

    def release(self, placed: Placed) -> None:
        """Give a device's id and port back, once it is really gone."""
        if self.placed.get(placed.handle.id) is placed:
            del self.placed[placed.handle.id]
            if placed.place is not None:
                self.free_places.append(placed.place)
            if isinstance(placed.handle.address, ScsiAddress):
                self.free_targets.append(placed.handle.address.target)

    def _on_scsi(self, made: Recipe, device: Device) -> tuple[Recipe, ScsiAddress]:
        if not self.scsi_slot:
            raise InvalidConfig(f"{device.id}: the VM has no SCSI controller")
        if not self.free_targets:
            raise LimitExceeded(f"{device.id}: all {SCSI_TARGETS} SCSI targets are in use")
        target = min(self.free_targets)
        self.free_targets.remove(target)
        *rest, front = made.steps
        arguments = {**front.arguments, "scsi-id": target, "lun": 0}
        return replace(made, steps=(*rest, replace(front, arguments=arguments))), ScsiAddress(
            target, 0
        )


def qemu_place(bus: str, number: int) -> dict[str, str]:
    """Return the options for a slot of a bus, or without one for a number on CCW."""
    return {"bus": bus, "addr": f"{number:02x}"} if bus else {"devno": f"fe.0.{number:04x}"}


def _is_scsi(device: Device) -> bool:
    return isinstance(device, BlockDevice) and device.bus == "scsi"


def own_fds(device: Device) -> tuple[int, ...]:
    """Return the descriptors a device brings along."""
    match device:
        case NetDevice():
            return device.fds
        case VsockDevice() if device.fd >= 0:
            return (device.fd,)
        case _:
            return ()


def make_plan(spec: VmSpec) -> Plan:
    """Place everything a VM has at boot, and its hot-plug ports.

    Raises:
        InvalidConfig: the spec asks for what the machine type can't have.
        Conflict, LimitExceeded: see :meth:`Plan.add_cold`.
    """
    machine = machine_of(spec)
    plan = Plan(machine.transport, bus=machine.bus, iommu=spec.iommu)
    plan.places = make_places(spec, machine)
    plan.free_places = list(plan.places.free)
    plan._next_slot = machine.first_slot
    if spec.image is not None:
        plan.add_cold(spec.image)  # first, so that the guest calls it vda
    if spec.channel == "serial" or any(isinstance(d, SerialDevice) for d in spec.devices):
        plan.controller_slot = plan.take_slot("virtio-serial")
    plan.hot_disks_on_scsi = machine.scsi
    if spec.scsi or machine.scsi:
        if machine.transport == "mmio":
            raise InvalidConfig(f"scsi: {spec.machine} has no PCI")
        plan.scsi_slot = plan.take_slot("virtio-scsi")
        plan.free_targets = list(range(SCSI_TARGETS))
    if spec.channel == "serial":
        plan.add_cold(SerialDevice(AGENT_PORT_ID, AGENT_PORT_NAME))
    elif not any(isinstance(device, VsockDevice) for device in spec.devices):
        raise InvalidConfig("channel vsock needs a VsockDevice")
    for device in spec.devices:
        plan.add_cold(device)
    return plan
