"""Where a microVM's devices sit in the QEMU machine: virtio-mmio, or slots of one PCI bus."""

from __future__ import annotations

from typing import Any

from tests.standins.fc.fault import Fault
from tests.standins.qemu import Qemu

MMIO_DEVICES = 17
PCI_SLOTS = range(1, 31)
"""Firecracker has slot 31 as well; QEMU's chipset is there."""

_TRANSPORTS = {"on": 24, "off": 8}


class Mmio:
    """QEMU's microvm machine.

    Args:
        acpi: whether the guest finds its devices by ACPI, else on its command line.
    """

    def __init__(self, acpi: bool) -> None:
        self.acpi = "on" if acpi else "off"
        self._used = 0

    pci = False

    def machine(self) -> list[str]:
        """Return QEMU's options for the machine."""
        options = f"microvm,x-option-roms=off,rtc=on,isa-serial=on,acpi={self.acpi}"
        # The i8042 that a guest resets itself by, and that Ctrl+Alt+Del comes from.
        return [
            *("-M", f"{options},memory-backend=mem", "-bios", "qboot.rom"),
            *("-global", "virtio-mmio.force-legacy=false", "-device", "i8042"),
        ]

    def place(self, kind: str, name: str) -> dict[str, Any]:
        """Return the front-end of the next device.

        Args:
            kind: ``virtio-blk`` and so on.
            name: its QEMU id.

        Raises:
            Fault: there is no place left.
        """
        if self._used == min(MMIO_DEVICES, _TRANSPORTS[self.acpi]):
            raise Fault("Cannot start microvm: Failed to allocate requested resource: IRQs")
        self._used += 1
        # The guest finds the last transport first.
        bus = f"virtio-mmio-bus.{_TRANSPORTS[self.acpi] - self._used}"
        return {"driver": f"{kind}-device", "id": name, "bus": bus}

    def free(self, name: str) -> None:
        """Nothing leaves an MMIO machine."""

    def places(self) -> dict[str, int]:
        """Return nothing: a device's place follows from the order alone."""
        return {}


class Pci:
    """QEMU's q35 machine, all devices on bus 0 and hot-plugged there without a word.

    Args:
        places: slots that devices must get, from a snapshot.

    The bus has no hot-plug of its own. A controller of which only the bus object is used
    lends it a handler that does nothing but make and remove, and tells the guest nothing.
    """

    pci = True
    _BUS = "/machine/q35/pcie.0"

    def __init__(self, places: dict[str, int] | None = None) -> None:
        self._slots: dict[int, str] = {}
        self._wanted = places or {}

    def places(self) -> dict[str, int]:
        """Return each device's slot, which a snapshot keeps."""
        return {name: slot for slot, name in self._slots.items()}

    def machine(self) -> list[str]:
        """Return QEMU's options for the machine."""
        return [
            *("-M", "q35,memory-backend=mem,vmport=off,smbus=off,sata=off,usb=off"),
            *("-device", "piix3-usb-uhci,id=silent,bus=pcie.0,addr=1f.7"),
        ]

    def enable_hotplug(self, qemu: Qemu) -> None:
        """Allow devices to come and go."""
        qemu.execute(
            "qom-set",
            path=self._BUS,
            property="hotplug-handler",
            value="/machine/peripheral/silent/silent.0",
        )

    def place(self, kind: str, name: str) -> dict[str, Any]:
        """Return the front-end of a device in the lowest free slot.

        Raises:
            Fault: there is none.
        """
        used = {*self._slots, *self._wanted.values()}
        slot = self._wanted.pop(name, next((slot for slot in PCI_SLOTS if slot not in used), None))
        if slot is None:
            raise Fault("PCI error: no slot left on the PCI bus")
        self._slots[slot] = name
        return {"driver": f"{kind}-pci", "id": name, "bus": "pcie.0", "addr": f"{slot:02x}"}

    def free(self, name: str) -> None:
        """Give a slot back; the next device may take it."""
        self._slots = {slot: used for slot, used in self._slots.items() if used != name}
