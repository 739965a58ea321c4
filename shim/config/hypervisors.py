"""``[hypervisor.*]``: one model a hypervisor, on a common base. Memory sizes are in MiB.

Names are Kata's. A key that a hypervisor can't honour is absent from its model, or its
rule accepts only the value that asks for nothing.
"""

# ruff: noqa: RUF009 - key() declares a field, and paths are immutable

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shim.config import rules
from shim.config.rules import key
from vmm.arch import MACHINES

Name = Literal["qemu", "firecracker", "clh"]

_HOST_CPUS = ", where 0 stands for 1 and a negative number for all CPUs of the host"
_MAX_VCPUS = 1024
_MAX_MIB = 64 << 20
_MAX_ROOT_PORTS = 64
_MAX_QUEUES = 16
_MAX_DISK_QUEUES = 64
_MAX_QUEUE_SIZE = 1024
_MAX_RATE = 1 << 40  # bits per second
_FIRECRACKER_VCPUS = 32

# QEMU's -sandbox argument that denies what no feature here needs; Kata recommends the same.
QEMU_SECCOMP = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """What every hypervisor has."""

    name: ClassVar[Name]
    vcpu_limit: ClassVar[int] = _MAX_VCPUS
    # Whether it takes open taps; otherwise they exist by name, and outlive it.
    takes_open_taps: ClassVar[bool] = True

    path: Path | None = key(None, rules.found_path("the hypervisor's program on the PATH"))
    kernel: Path | None = key(
        None, rules.found_path("the guest kernel that katapy.guest_kernel names")
    )
    initrd: Path | None = key(
        None, rules.found_path("the initramfs that belongs to that kernel, if any")
    )
    image: Path | None = key(
        None, rules.found_path("the guest image built by `katapy image build`")
    )
    kernel_params: str = key("", rules.text())
    guest_hook_path: Path | None = key(None, rules.found_path("no hooks of the image's"))

    default_vcpus: float = key(1.0, rules.number(-1, _MAX_VCPUS, _HOST_CPUS))
    default_maxvcpus: int = key(0, rules.integer(0, _MAX_VCPUS))
    default_memory: int = key(2048, rules.integer(128, _MAX_MIB, "MiB"))
    default_maxmemory: int = key(0, rules.integer(0, _MAX_MIB, "MiB"))
    # Kata's 32 holds its agent, but not ours with Python.
    overhead_memory: int = key(96, rules.integer(0, _MAX_MIB, "MiB"))
    # Kata leaves it off where DIMMs work; only virtio-mem can shrink again.
    enable_virtio_mem: bool = key(True, rules.flag())
    # Kata leaves it off; a guest that keeps every page it ever touched is what its users
    # complain of most, and free page reporting costs nothing measurable.
    reclaim_guest_freed_memory: bool = key(True, rules.flag())

    shared_fs: str = key("auto", rules.choice("auto", "none"))
    block_device_cache_direct: bool = key(False, rules.flag())
    disable_block_device_use: bool = key(False, rules.flag())
    disk_rate_limiter_bw_max_rate: int = key(0, rules.integer(0, _MAX_RATE, "bits per second"))
    disk_rate_limiter_bw_one_time_burst: int = key(0, rules.integer(0, _MAX_RATE, "bits"))
    disk_rate_limiter_ops_max_rate: int = key(0, rules.integer(0, _MAX_RATE, "per second"))
    disk_rate_limiter_ops_one_time_burst: int = key(0, rules.integer(0, _MAX_RATE))
    enable_hugepages: bool = key(False, rules.flag())
    enable_guest_swap: bool = key(False, rules.flag())
    # Kata's is below /run, which is the host's memory.
    guest_swap_path: Path = key(Path("/var/lib/katapy/swap"), rules.path())
    guest_swap_size_percent: int = key(100, rules.integer(0, 1000, "percent of the memory"))
    guest_swap_create_threshold_secs: int = key(60, rules.integer(0, 86400, "seconds"))
    rx_rate_limiter_max_rate: int = key(0, rules.integer(0, _MAX_RATE, "bits per second"))
    tx_rate_limiter_max_rate: int = key(0, rules.integer(0, _MAX_RATE, "bits per second"))
    enable_debug: bool = key(False, rules.flag())

    # As the files have it that Kata's runtime-rs ships, but for what there is not here.
    enable_annotations: tuple[str, ...] = key(
        ("kernel_params", "default_vcpus", "default_memory"), rules.patterns()
    )
    valid_hypervisor_paths: tuple[str, ...] = key((), rules.texts())

    @property
    def section(self) -> str:
        """The configuration's section that this is."""
        return f"hypervisor.{self.name}"

    def boot_vcpus(self, host_cpus: int) -> int:
        """Return how many vCPUs a VM boots with before any request is added to it."""
        if self.default_vcpus < 0:
            return host_cpus
        return max(1, math.ceil(self.default_vcpus))

    def max_vcpus(self, host_cpus: int) -> int:
        """Return how many vCPUs a VM may ever have; 0 in the file means the host's number."""
        most = max(self.default_maxvcpus or host_cpus, self.boot_vcpus(host_cpus))
        return min(most, self.vcpu_limit)

    def max_memory(self, host_mib: int) -> int:
        """Return the MiB a VM may ever have; 0 in the file means the host's memory."""
        return max(self.default_maxmemory or host_mib, self.default_memory)


@dataclass(frozen=True, slots=True)
class SharingHypervisor(Hypervisor):
    """One that a virtiofsd can share host directories through."""

    shared_fs: str = key("auto", rules.choice("auto", "virtio-fs", "none"))
    virtio_fs_daemon: Path | None = key(None, rules.found_path("the virtiofsd of the distribution"))
    virtio_fs_extra_args: tuple[str, ...] = key((), rules.texts())
    virtio_fs_cache: str = key("auto", rules.choice("auto", "always", "metadata", "never"))
    virtio_fs_queue_size: int = key(1024, rules.integer(2, 1024))
    valid_virtio_fs_daemon_paths: tuple[str, ...] = key((), rules.texts())
    cold_plug_vfio: str = key("no-port", rules.choice("no-port", "root-port", "bridge-port"))
    hot_plug_vfio: str = key("no-port", rules.choice("no-port", "root-port", "bridge-port"))


@dataclass(frozen=True, slots=True)
class Qemu(SharingHypervisor):
    """``[hypervisor.qemu]``."""

    name: ClassVar[Name] = "qemu"

    # "auto" is ours: the first one of the guest's architecture.
    machine_type: str = key("auto", rules.choice("auto", *MACHINES))
    # "auto" is ours: 9p reads five times faster than virtio-fs under TCG and needs no
    # daemon, but wants a guest kernel that has it.
    shared_fs: str = key("auto", rules.choice("auto", "virtio-fs", "virtio-9p", "none"))
    # Kata's 8192 makes reads many times slower than the largest one that is useful.
    msize_9p: int = key(512000, rules.integer(4096, 1 << 20, "bytes"))
    block_device_driver: str = key(
        "virtio-blk",
        rules.choice("virtio-blk", "virtio-blk-pci", "virtio-blk-ccw", "virtio-scsi"),
    )
    # "auto" is ours: what QEMU does unless told, threads.
    block_device_aio: str = key("auto", rules.choice("auto", "threads", "native", "io_uring"))
    block_device_cache_noflush: bool = key(False, rules.flag())
    block_device_logical_sector_size: int = key(0, rules.sector_size())
    block_device_physical_sector_size: int = key(0, rules.sector_size())
    num_queues: int = key(0, rules.integer(0, _MAX_DISK_QUEUES))
    queue_size: int = key(0, rules.integer(0, _MAX_QUEUE_SIZE))
    # Go's runtime says it by disable_image_nvdimm; the default is that of runtime-rs's
    # other VMMs, as a disk needs no room in the guest's address space.
    vm_rootfs_driver: str = key(
        "virtio-blk-pci", rules.choice("virtio-blk-pci", "virtio-pmem", "nvdimm")
    )
    enable_iommu: bool = key(False, rules.flag())
    guest_memory_dump_path: Path | None = key(None, rules.found_path("no dump"))
    rootless: bool = key(False, rules.flag())
    # Kata's name for what a guest node's memory comes from; empty is each node of the host.
    enable_numa: bool = key(False, rules.flag())
    numa_mapping: tuple[str, ...] = key((), rules.texts())
    pcie_root_port: int = key(0, rules.integer(0, _MAX_ROOT_PORTS))
    network_queues: int = key(1, rules.integer(1, _MAX_QUEUES))
    disable_vhost_net: bool = key(False, rules.flag())
    # Kata's default is "", no filter.
    seccompsandbox: str = key(QEMU_SECCOMP, rules.choice("", QEMU_SECCOMP))


@dataclass(frozen=True, slots=True)
class Firecracker(Hypervisor):
    """``[hypervisor.firecracker]``: no shared directories, vCPUs as at boot."""

    name: ClassVar[Name] = "firecracker"
    vcpu_limit: ClassVar[int] = _FIRECRACKER_VCPUS
    takes_open_taps: ClassVar[bool] = False

    default_vcpus: float = key(1.0, rules.number(-1, _FIRECRACKER_VCPUS, _HOST_CPUS))
    default_maxvcpus: int = key(0, rules.integer(0, _FIRECRACKER_VCPUS))
    block_device_cache_direct: bool = key(
        False, rules.only(False, "Firecracker always uses the host's page cache")
    )
    block_device_aio: str = key("auto", rules.choice("auto", "threads", "io_uring"))
    block_device_cache_noflush: bool = key(False, rules.flag())
    disable_block_device_use: bool = key(
        False, rules.only(False, "Firecracker has no other way for files into the guest")
    )
    jailer_path: Path | None = key(None, rules.found_path("no jailer"))
    # Ours. Hot-plug over it is what Firecracker calls a preview, so the operator says so.
    enable_pci: bool = key(False, rules.flag())
    disable_seccomp: bool = key(False, rules.flag())


@dataclass(frozen=True, slots=True)
class CloudHypervisor(SharingHypervisor):
    """``[hypervisor.clh]``, which runtime-rs calls ``[hypervisor.cloud-hypervisor]``."""

    name: ClassVar[Name] = "clh"

    num_queues: int = key(0, rules.integer(0, _MAX_DISK_QUEUES))
    queue_size: int = key(0, rules.integer(0, _MAX_QUEUE_SIZE))
    disable_seccomp: bool = key(False, rules.flag())


AnyHypervisor = Qemu | Firecracker | CloudHypervisor

HYPERVISORS: tuple[type[AnyHypervisor], ...] = (Qemu, Firecracker, CloudHypervisor)

NAMES = {
    "qemu": "qemu",
    "firecracker": "firecracker",
    "clh": "clh",
    "cloud-hypervisor": "clh",
}
"""What ``hypervisor_name`` and a section may call it → the name here."""
