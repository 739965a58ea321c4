"""What each Firecracker version has. Its API refuses unknown fields, so nothing newer is sent.

Source: Firecracker's CHANGELOG and docs.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig
from vmm.hypervisor import Capabilities
from vmm.spec import MIB

if TYPE_CHECKING:
    from vmm.version import Version

NAME = "Firecracker"
MINIMUM = (1, 12)
MAX_VCPUS = 32
MMIO_DEVICES = 17 if platform.machine() == "x86_64" else 92
PCI_SLOTS = 31
MEM_BLOCK = 2 * MIB
MEM_SLOT = 128 * MIB

# What a version brought, by the name used in `Features.since`.
_SINCE = {
    "pci": (1, 13),
    "snapshot": (1, 13),
    "serial_out": (1, 14),
    "memory_hotplug": (1, 14),
    "pmem": (1, 14),
    "free_page_reporting": (1, 14),
    "pci_hotplug": (1, 16),
    "mtu": (1, 16),
    "vsock_override": (1, 16),
    "pmem_limit": (1, 16),
    "vsock_after_resume": (1, 17),
    "bzimage": (1, 17),
}


@dataclass(frozen=True)
class Features:
    """One Firecracker binary.

    Args:
        version: what it reports.
        pci: whether it is started with PCI.
    """

    version: Version
    pci: bool

    @property
    def vmm(self) -> str:
        """Name and version."""
        return f"{NAME} {self.version}"

    def has(self, feature: str) -> bool:
        """Whether this version has a feature."""
        return self.version >= _SINCE[feature]

    def since(self, feature: str) -> str:
        """Say which version has a feature."""
        major, minor = _SINCE[feature]
        return f"{NAME} {major}.{minor} or later"

    def check(self) -> None:
        """Raise unless the version is one we know and can do what was asked.

        Raises:
            InvalidConfig: too old, or PCI before there was any.
        """
        if self.version < MINIMUM:
            raise InvalidConfig(f"{self.vmm}: 1.12 or later is needed")
        if self.pci and not self.has("pci"):
            raise InvalidConfig(f"{self.vmm} has no PCI: that needs {self.since('pci')}")

    def capabilities(self) -> Capabilities:
        """Return all that this version can do for a VM that asks for all of it."""
        hot_pci = self.pci and self.has("pci_hotplug")
        memory = self.has("memory_hotplug")
        why_not = {
            "fs_share": "Firecracker shares no directories",
            "fs_hot": "Firecracker shares no directories",
            "ninep": "Firecracker shares no directories",
            "block_serial": "Firecracker makes a disk's serial number itself",
            "nic_by_fd": "Firecracker opens taps by name only",
            "multi_queue": "Firecracker has one queue per device",
            "vcpu_up": "Firecracker can't add virtual CPUs; give it all at boot",
            "vcpu_down": "Firecracker can't remove virtual CPUs",
            "vfio_cold": "Firecracker passes no host devices on",
            "vfio_hot": "Firecracker passes no host devices on",
            "serial_agent": "Firecracker has no virtio-serial; use vsock",
            "firmware": "Firecracker starts kernels only",
            "lazy_restore": "needs a page-fault handler, which there is none",
            "guest_panic_event": "Firecracker reports nothing of the guest but its end",
            "guest_rescan_needed": "without PCI the guest is told of a new disk",
            "guest_remove_first": "without PCI a drive is let go of by its unmounting",
            "acpi_shutdown": "Firecracker's power button is Ctrl+Alt+Del",
            "live_migration": "Firecracker does not migrate",
        }
        if not hot_pci:
            why_not["net_hot"] = why_not["pmem_hot"] = self._why_not_hot()
        if not memory:
            why_not["mem_up"] = why_not["mem_down"] = self.since("memory_hotplug")
            why_not["mem_granule"] = why_not["mem_max"] = self.since("memory_hotplug")
        if not self.has("pmem"):
            why_not["pmem_cold"] = self.since("pmem")
        if not self.has("free_page_reporting"):
            why_not["free_page_reporting"] = self.since("free_page_reporting")
        if not self.has("snapshot"):
            why_not["snapshot"] = self.since("snapshot")
        return Capabilities(
            transport="pci" if self.pci else "mmio",
            max_vcpus=MAX_VCPUS,
            max_devices=PCI_SLOTS if self.pci else MMIO_DEVICES,
            block_hot="add_remove" if hot_pci else "swap",
            block_resize=True,
            net_hot=hot_pci,
            mem_up=memory,
            mem_down=memory,
            mem_granule=MEM_BLOCK if memory else 0,
            balloon=True,
            free_page_reporting=self.has("free_page_reporting"),
            pause=True,
            snapshot="full" if self.has("snapshot") else "none",
            restore_overrides=True,
            vsock="hybrid",
            console=True,
            initrd=True,
            pmem_cold=self.has("pmem"),
            pmem_hot=hot_pci,
            rate_limit="dynamic",
            counters=True,
            hugepages=True,
            guest_rescan_needed=hot_pci,
            guest_remove_first=hot_pci,
            reset_semantics="exit",
            jail=True,
            rootless=True,
            seccomp=True,
            vmm=self.vmm,
            why_not=why_not,
        )

    def _why_not_hot(self) -> str:
        if not self.has("pci_hotplug"):
            return f"{self.since('pci_hotplug')}, started with PCI"
        return "PCI, which is off"
