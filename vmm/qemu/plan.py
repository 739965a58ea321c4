"""Where every device of a VM goes: PCI slots, root ports, MMIO transports.

The backend places each device itself, so it knows the guest's view of the address
without asking, and slots stay reserved until a device is really gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmm.errors import Conflict, InvalidConfig, LimitExceeded
from vmm.qemu import recipe
from vmm.spec import (
    AttachedDevice,
    BlockDevice,
    MmioIndex,
    NetDevice,
    PciPath,
    ScsiAddress,
    SerialDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from vmm.qemu.steps import Recipe
    from vmm.spec import Address, Device, VmSpec

AGENT_PORT_ID = "agent"
AGENT_PORT_NAME = "org.katapy.agent.0"
_FIRST_PORT_SLOT = 0x10
_LAST_SLOT = 0x1E  # 0x1f is the chipset's own
_FIRST_PC_SLOT = 2  # the host bridge and the ISA bridge come before
_PC_COLD_SLOTS = 12
_PORT_SLOTS = _LAST_SLOT - _FIRST_PORT_SLOT + 1
_FUNCTIONS = 8
SCSI_ID = "scsi0"
SCSI_TARGETS = 256
MAX_PORTS = _PORT_SLOTS * _FUNCTIONS
MMIO_TRANSPORTS = 24


@dataclass(frozen=True)
class Port:
    """A place for one hot-plugged device: a root port, or a slot of the root bus.

    Args:
        name: the bus the device is put on.
        slot: of the port, or of the device itself.
        function: of the port.
        multifunction: whether the slot has several ports.
        direct: it is a slot of the root bus, no port.
    """

    name: str
    slot: int
    function: int = 0
    multifunction: bool = False
    direct: bool = False

    @property
    def path(self) -> PciPath:
        """Guest address of the device."""
        if self.direct:
            return PciPath(((self.slot, 0),))
        return PciPath(((self.slot, self.function), (0, 0)))

    @property
    def addr(self) -> str:
        """Slot of the device on its bus."""
        return f"{self.slot:02x}" if self.direct else "00"


@dataclass(frozen=True)
class Placed:
    """A device with its recipe and its place."""

    handle: AttachedDevice
    recipe: Recipe
    fds: tuple[int, ...] = ()
    port: Port | None = None


@dataclass
class Plan:
    """The devices of one VM and the places that are left.

    Args:
        pci: PCI; else virtio-mmio without hot-plug.
        bus: the root bus.
        iommu: devices of the root bus are behind an IOMMU, which old-style virtio is not.
    """

    pci: bool
    placed: dict[str, Placed] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    free_ports: list[Port] = field(default_factory=list)
    bus: str = "pcie.0"
    iommu: bool = False
    controller_slot: int = 0
    scsi_slot: int = 0
    free_targets: list[int] = field(default_factory=list)
    _next_slot: int = 1
    _next_name: int = 0

    def take_slot(self, what: str) -> int:
        """Reserve a slot for a device that is there at boot.

        Raises:
            LimitExceeded: none is left.
        """
        slot = self._next_slot
        limit = (
            (self.ports[0].slot if self.ports else _LAST_SLOT + 1)
            if self.pci
            else (MMIO_TRANSPORTS + 1)
        )
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
            device, self.new_name(device), pci=self.pci, fds=tuple(str(fd) for fd in fds)
        )
        address: Address | None = None
        if _is_scsi(device):
            made, address = self._on_scsi(made, device)
        elif made.needs_slot:
            slot = self.take_slot(device.id)
            if self.pci:
                made = made.at(self.bus, f"{slot:02x}")
                if self.iommu:
                    made = made.modern()
                address = PciPath(((slot, 0),))
            else:
                address = MmioIndex(slot - 1)
        self.placed[device.id] = Placed(AttachedDevice(device, address, hot=False), made, fds)

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
        if _is_scsi(device):
            made = recipe.build(device, self.new_name(device), pci=True)
            made, address = self._on_scsi(made, device)
            placed = Placed(AttachedDevice(device, address, hot=True), made)
            self.placed[device.id] = placed
            return placed
        if not self.free_ports:
            raise LimitExceeded(f"{device.id}: all {len(self.ports)} hot-plug ports are in use")
        made = recipe.build(device, self.new_name(device), pci=True, fds=fds)
        port = self.free_ports.pop(0)
        handle = AttachedDevice(device, port.path, hot=True)
        placed = Placed(handle, made.at(port.name, port.addr), port=port)
        self.placed[device.id] = placed
        return placed

    def release(self, placed: Placed) -> None:
        """Give a device's id and port back, once it is really gone."""
        if self.placed.get(placed.handle.id) is placed:
            del self.placed[placed.handle.id]
            if placed.port is not None:
                self.free_ports.append(placed.port)
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
    pci = spec.machine != "microvm"
    plan = Plan(pci, iommu=spec.iommu)
    if spec.machine == "pc":
        plan.bus = "pci.0"
        # ACPI hot-plug needs no ports there, and the chipset has the first slots.
        plan.ports = _make_slots(plan.bus, spec.hotplug_slots)
        plan._next_slot = _FIRST_PC_SLOT
    elif pci:
        plan.ports = _make_ports(spec.hotplug_slots)
    plan.free_ports = list(plan.ports)
    if spec.image is not None:
        plan.add_cold(spec.image)  # first, so that the guest calls it vda
    if spec.channel == "serial" or any(isinstance(d, SerialDevice) for d in spec.devices):
        plan.controller_slot = plan.take_slot("virtio-serial")
    if spec.scsi:
        if not pci:
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


def _make_slots(bus: str, count: int) -> tuple[Port, ...]:
    limit = _LAST_SLOT - _FIRST_PC_SLOT - _PC_COLD_SLOTS
    if not 0 <= count <= limit:
        raise InvalidConfig(f"hotplug_slots: 0 to {limit} on pc, not {count}")
    return tuple(Port(bus, _LAST_SLOT - count + 1 + index, direct=True) for index in range(count))


def _make_ports(count: int) -> tuple[Port, ...]:
    if not 0 <= count <= MAX_PORTS:
        raise InvalidConfig(f"hotplug_slots: 0 to {MAX_PORTS}, not {count}")
    # A port to a slot while they last, as simple addresses are easier on every agent.
    width = -(-count // _PORT_SLOTS)
    slots = -(-count // width) if width else 0
    first = _LAST_SLOT - slots + 1
    return tuple(
        Port(f"rp{index}", first + index // width, index % width, width > 1)
        for index in range(count)
    )
