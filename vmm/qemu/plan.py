"""Where every device of a VM goes: PCI slots, root ports, MMIO transports.

The backend places each device itself, so it knows the guest's view of the address
without asking, and slots stay reserved until a device is really gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm.errors import Conflict, InvalidConfig, LimitExceeded
from vmm.qemu import recipe
from vmm.spec import (
    AttachedDevice,
    MmioIndex,
    NetDevice,
    PciPath,
    SerialDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from vmm.qemu.recipe import Recipe
    from vmm.spec import Address, Device, VmSpec

AGENT_PORT_ID = "agent"
AGENT_PORT_NAME = "org.katapy.agent.0"
_FIRST_PORT_SLOT = 0x10
_LAST_SLOT = 0x1E  # 0x1f is the chipset's own
_PORT_SLOTS = _LAST_SLOT - _FIRST_PORT_SLOT + 1
_FUNCTIONS = 8
MAX_PORTS = _PORT_SLOTS * _FUNCTIONS
MMIO_TRANSPORTS = 24


@dataclass(frozen=True)
class Port:
    """A root port: a place for one hot-plugged device."""

    name: str
    slot: int
    function: int
    multifunction: bool

    @property
    def path(self) -> PciPath:
        """Guest address of the device behind the port."""
        return PciPath(((self.slot, self.function), (0, 0)))


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
        pci: PCI with root ports; else virtio-mmio without hot-plug.
    """

    pci: bool
    placed: dict[str, Placed] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    free_ports: list[Port] = field(default_factory=list)
    controller_slot: int = 0
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
        if made.needs_slot:
            slot = self.take_slot(device.id)
            if self.pci:
                made = made.at("pcie.0", f"{slot:02x}")
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
        if not self.free_ports:
            raise LimitExceeded(f"{device.id}: all {len(self.ports)} hot-plug ports are in use")
        made = recipe.build(device, self.new_name(device), pci=True, fds=fds)
        port = self.free_ports.pop(0)
        handle = AttachedDevice(device, port.path, hot=True)
        placed = Placed(handle, made.at(port.name, "00"), port=port)
        self.placed[device.id] = placed
        return placed

    def release(self, placed: Placed) -> None:
        """Give a device's id and port back, once it is really gone."""
        if self.placed.get(placed.handle.id) is placed:
            del self.placed[placed.handle.id]
            if placed.port is not None:
                self.free_ports.append(placed.port)


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
    plan = Plan(pci)
    if pci:
        plan.ports = _make_ports(spec.hotplug_slots)
        plan.free_ports = list(plan.ports)
    if spec.image is not None:
        plan.add_cold(spec.image)  # first, so that the guest calls it vda
    if spec.channel == "serial" or any(isinstance(d, SerialDevice) for d in spec.devices):
        plan.controller_slot = plan.take_slot("virtio-serial")
    if spec.channel == "serial":
        plan.add_cold(SerialDevice(AGENT_PORT_ID, AGENT_PORT_NAME))
    elif not any(isinstance(device, VsockDevice) for device in spec.devices):
        raise InvalidConfig("channel vsock needs a VsockDevice")
    for device in spec.devices:
        plan.add_cold(device)
    return plan


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
