"""Where devices that come later can go: slots of bridges, root ports, slots of the root bus.

A bridge holds 30 devices and costs a boot under emulation next to nothing, where a root
port holds one and costs 20 ms; but behind a bridge a device is conventional PCI, which is
all that virtio wants, and not all that a passed-through device may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig
from vmm.spec import PciPath, VfioDevice

if TYPE_CHECKING:
    from vmm.spec import Device, VmSpec

LAST_SLOT = 0x1E  # 0x1f is the chipset's own
FIRST_PC_SLOT = 2  # the host bridge and the ISA bridge come before
MAX_BRIDGES = 4
BRIDGE_SLOTS = 30
MAX_PORTS = 64
_PC_COLD_SLOTS = 12
_FUNCTIONS = 8


@dataclass(frozen=True)
class Place:
    """A place for one device.

    Args:
        bus: the bus the device is put on.
        addr: its slot there.
        path: where the guest finds it.
        root_port: the place is a root port of that name.
    """

    bus: str
    addr: int
    path: PciPath
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


def make_places(spec: VmSpec) -> Places:
    """Return the places of a VM with PCI.

    Raises:
        InvalidConfig: there can't be so many.
    """
    if spec.machine == "pc":
        return _on_root_bus(spec.hotplug_slots + spec.root_ports)
    # Elsewhere than on x86 no ACPI tells the guest of what comes behind a bridge.
    bridged = spec.hotplug_slots if spec.machine == "q35" else 0
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


def _on_root_bus(count: int) -> Places:
    limit = LAST_SLOT - FIRST_PC_SLOT - _PC_COLD_SLOTS
    if not 0 <= count <= limit:
        raise InvalidConfig(f"hotplug_slots: 0 to {limit} on pc, not {count}")
    first = LAST_SLOT - count + 1
    # ACPI hot-plug needs no bridge there.
    slots = range(first, LAST_SLOT + 1)
    places = tuple(Place("pci.0", slot, PciPath(((slot, 0),))) for slot in slots)
    return Places(places, first_taken=first)
