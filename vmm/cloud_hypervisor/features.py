"""What each Cloud Hypervisor version has. Its API ignores unknown keys, so a key that is
too new would do nothing silently: none is sent.

Source: Cloud Hypervisor's release notes and API description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig
from vmm.hypervisor import Capabilities
from vmm.spec import MIB

if TYPE_CHECKING:
    from vmm.version import Version

NAME = "Cloud Hypervisor"
MINIMUM = (46, 0)
MAX_VCPUS = 254
PCI_SLOTS = 31  # of segment 0, without the host bridge
VIRTIO_MEM_BLOCK = 2 * MIB
# Size of an ACPI memory device, and alignment of the virtio-mem region.
MEM_ALIGNMENT = 128 * MIB

_SINCE = {
    "resize_disk": (50, 0),
    "image_type": (51, 0),
    "sparse": (51, 0),
}


@dataclass(frozen=True)
class Features:
    """One Cloud Hypervisor binary.

    Args:
        version: what it reports.
    """

    version: Version

    @property
    def vmm(self) -> str:
        """Name and version."""
        return f"{NAME} {self.version.major}.{self.version.minor}"

    def has(self, feature: str) -> bool:
        """Whether this version has a feature."""
        return self.version >= _SINCE[feature]

    def since(self, feature: str) -> str:
        """Say which version has a feature."""
        return f"{NAME} {_SINCE[feature][0]} or later"

    def check(self) -> None:
        """Raise unless the version is one we know.

        Raises:
            InvalidConfig: it is too old.
        """
        if self.version < MINIMUM:
            raise InvalidConfig(f"{self.vmm}: version {MINIMUM[0]} or later is needed")

    def capabilities(self) -> Capabilities:
        """Return all that this version can do for a VM that asks for all of it."""
        why_not = {
            "ninep": "Cloud Hypervisor has no 9p; use virtio-fs",
            "serial_agent": "Cloud Hypervisor has no virtio-serial; use vsock",
            "firmware": "only kernels are started here",
            "lazy_restore": "not used yet",
            "live_migration": "not used yet",
            "rootless": "it runs as the caller",
            "guest_rescan_needed": "the guest is told of a new device",
            "guest_remove_first": "the guest is asked to let go",
        }
        if not self.has("resize_disk"):
            why_not["block_resize"] = self.since("resize_disk")
        return Capabilities(
            transport="pci",
            max_vcpus=MAX_VCPUS,
            max_devices=PCI_SLOTS,
            fs_share=True,
            fs_hot=True,
            block_hot="add_remove",
            block_resize=self.has("resize_disk"),
            block_serial=True,
            net_hot=True,
            nic_by_fd=True,
            multi_queue=True,
            vcpu_up=True,
            vcpu_down=True,
            mem_up=True,
            mem_down=True,
            mem_granule=VIRTIO_MEM_BLOCK,
            balloon=True,
            free_page_reporting=True,
            pause=True,
            snapshot="full",
            restore_overrides=True,
            vsock="hybrid",
            console=True,
            initrd=True,
            pmem_cold=True,
            pmem_hot=True,
            vfio_cold=True,
            vfio_hot=True,
            rate_limit="static",
            counters=True,
            hugepages=True,
            event_stream="rich",
            reset_semantics="exit",
            guest_panic_event=True,
            acpi_shutdown=True,
            jail=True,
            seccomp=True,
            vmm=self.vmm,
            why_not=why_not,
        )
