"""Where devices that come later can go: slots of bridges or the root bus, root ports, numbers.

A bridge holds 30 devices and costs a boot under emulation next to nothing, where a root
port holds one and costs 20 ms; but behind a bridge a device is conventional PCI, which is
all that virtio wants, and not all that a passed-through device may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig
from vmm.spec import CcwAddress, PciPath, VfioDevice

if TYPE_CHECKING:
    from vmm.qemu.machines import Machine
    from vmm.spec import Device, VmSpec

LAST_SLOT = 0x1E  # 0x1f is the chipset's own
MAX_BRIDGES = 4
BRIDGE_SLOTS = 30
MAX_PORTS = 64
_PC_COLD_SLOTS = 12
_FUNCTIONS = 8
_FIRST_HOT_NUMBER = 0x100
MAX_NUMBERS = 256


@dataclass(frozen=True)
class Place:
    """A place for one device.

    Args:
        bus: the bus the device is put on; "" where devices have numbers.
        addr: its slot there, or its number.
        path: where the guest finds it.
        root_port: the place is a root port of that name.
    """

    bus: str
    addr: int
    path: PciPath | CcwAddress
    root_port: bool = False


@dataclass(frozen=True)
class Places:
    """All places of one VM, and what they need.

    Args:
        free: the places.
        bridges: name and slot of each bridge.
        ports: name, slot, function and whether its slot has several, of each root port.
        first_taken: the lowest slot of the root bus that these take.
    """

    free: tuple[Place, ...]
    bridges: tuple[tuple[str, int], ...] = ()
    ports: tuple[tuple[str, int, int, bool], ...] = ()
    first_taken: int = LAST_SLOT + 1


def make_places(spec: VmSpec, machine: Machine) -> Places:
    """Return the places of a VM.

    Raises:
        InvalidConfig: there can't be so many.
    """
    match machine.places:
        case "none":
            return Places(())
        case "device numbers":
            return _numbers(spec.hotplug_slots + spec.root_ports)
        case "root bus":
            return _on_root_bus(spec.hotplug_slots + spec.root_ports, machine)
    # Elsewhere than on x86 no ACPI tells the guest of what comes behind a bridge.
    bridged = spec.hotplug_slots if machine.places == "bridges" else 0
    ports = spec.root_ports + spec.hotplug_slots - bridged
    if not 0 <= bridged <= MAX_BRIDGES * BRIDGE_SLOTS:
        raise InvalidConfig(f"hotplug_slots: 0 to {MAX_BRIDGES * BRIDGE_SLOTS}, not {bridged}")
    if not 0 <= ports <= MAX_PORTS:
        raise InvalidConfig(f"root ports: 0 to {MAX_PORTS}, not {ports}")
    count = -(-bridged // BRIDGE_SLOTS)
    bridges = tuple((f"br{index}", LAST_SLOT - index) for index in range(count))
    free = [
        Place(bridges[index // BRIDGE_SLOTS][0], slot, PciPath(((at, 0), (slot, 0))))
        for index in range(bridged)
        for slot, at in ((index % BRIDGE_SLOTS + 1, bridges[index // BRIDGE_SLOTS][1]),)
    ]
    # A slot to each port while they last, as simple addresses are easier on every agent.
    single = ports <= _FUNCTIONS
    width = 1 if single else _FUNCTIONS
    slots = -(-ports // width)
    first = LAST_SLOT - count - slots + 1
    made = tuple(
        (f"rp{index}", first + index // width, index % width, not single) for index in range(ports)
    )
    free += [
        Place(name, 0, PciPath(((slot, function), (0, 0))), root_port=True)
        for name, slot, function, _ in made
    ]
    return Places(tuple(free), bridges, made, first)


def choose(free: list[Place], device: Device) -> Place | None:
    """Take the place that suits a device best out of the free ones; None when none is free."""
    wants_port = isinstance(device, VfioDevice)
    for place in free:
        if place.root_port is wants_port:
            free.remove(place)
            return place
    return free.pop(0) if free else None


def _numbers(count: int) -> Places:
    if not 0 <= count <= MAX_NUMBERS:
        raise InvalidConfig(f"hotplug_slots: 0 to {MAX_NUMBERS}, not {count}")
    numbers = range(_FIRST_HOT_NUMBER, _FIRST_HOT_NUMBER + count)
    free = tuple(Place("", number, CcwAddress(number)) for number in numbers)
    return Places(free, first_taken=_FIRST_HOT_NUMBER)


def _on_root_bus(count: int, machine: Machine) -> Places:
    limit = LAST_SLOT - machine.first_slot - _PC_COLD_SLOTS
    if not 0 <= count <= limit:
        raise InvalidConfig(f"hotplug_slots: 0 to {limit} on pc, not {count}")
    first = LAST_SLOT - count + 1
    # ACPI hot-plug needs no bridge there.
    slots = range(first, LAST_SLOT + 1)
    places = tuple(Place(machine.bus, slot, PciPath(((slot, 0),))) for slot in slots)
    return Places(places, first_taken=first)
