"""Debian's cloud kernel: the unpacked vmlinux, and an initramfs that reaches the root.

Its virtio and erofs drivers are modules, so a small initramfs loads those the root and
the agent's channel need. The rest stays in the root file system, to be loaded after the
agent is up: each module costs 10 to 30 ms of boot under TCG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.arch import Architecture
from vmm.image.apt import Apt, Package
from vmm.image.cpio import CpioWriter
from vmm.image.errors import ImageError
from vmm.image.modules import Module, ModuleSet, alias_table, dependency_table
from vmm.image.sources import data_file
from vmm.kernel import KernelError, extract_vmlinux

_REAL_PACKAGE = r"linux-image-\d.*"
_PARTS = r"linux-(base|binary|modules)-\d.*"

# cryptomgr.notests: the self tests of the crypto modules cost 0.35 s under TCG. Which device
# the root is on, the VMM says. The files of tracefs, which neither the tuned kernel nor Kata's
# has, take 9 MiB of 47 and 0.1 s, whether they are looked at or not.
_NO_TRACEFS = "tracer_init_tracefs,init_kprobe_trace,init_uprobe_trace,init_dynamic_event"
_KERNEL_ARGS = (
    f"ro cryptomgr.notests memhp_default_state=online_movable initcall_blacklist={_NO_TRACEFS}"
)

# Loaded by the initramfs, by the condition it reads in its list.
_BOOT = {
    "boot": ("virtio_pci", "virtio_mmio", "virtio_blk"),
    "serial": ("virtio_console",),
    "vsock": ("vmw_vsock_virtio_transport",),
}
# The same for a root on persistent memory, where the architecture has it.
_PMEM = ("virtio_pmem", "nfit", "nd_pmem")
# Loaded in the background once the agent is up, in this order: nothing else would ask for
# a driver, as the guest has no udev.
_BACKGROUND = (
    "virtio_net",
    "virtio_rng",
    "virtiofs",
    "overlay",
    "virtio_balloon",
    "virtio_mem",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "virtio_scsi",
    "sd_mod",
    "virtio_pmem",
    "nfit",
    "nd_pmem",
    "pvpanic_pci",
    "pvpanic_mmio",
    "ptp_kvm",
    "9pnet_virtio",
    "9p",
)
# Loaded by the kernel's own request (a mount, a socket family, a netfilter rule).
_ON_DEMAND_DIRECTORIES = (
    "kernel/net/netfilter/",
    "kernel/net/ipv4/netfilter/",
    "kernel/net/ipv6/netfilter/",
    "kernel/net/bridge/",
    "kernel/fs/xfs/",
    "kernel/fs/ext4/",
    "kernel/fs/squashfs/",
)
_ON_DEMAND = (
    *("loop", "dm_mod", "dm_verity", "veth", "tun", "dummy", "macvlan", "xfrm_user"),
    # By the agent, for a container that drives a PCI device itself.
    *("vfio_pci", "vfio_iommu_type1"),
)


@dataclass(frozen=True)
class DebianKernel:
    """A kernel made ready: what the VMM starts, and the files its modules add to the root.

    Args:
        release: as ``uname -r`` says it.
        kernel: what the VMM starts: the ELF image on x86-64, elsewhere Debian's own file.
        initrd: initramfs, uncompressed (unpacking would cost more than reading).
        root_files: contents by absolute path.
    """

    release: str
    kernel: bytes
    initrd: bytes
    root_files: Mapping[str, bytes]


def kernel_args(arch: Architecture) -> str:
    """Return what the image needs on the kernel's command line."""
    return f"rootfstype={arch.rootfs} {_KERNEL_ARGS}"


def kernel_packages(apt: Apt, arch: Architecture) -> list[Package]:
    """Return the packages of the kernel that Debian's metapackage stands for now.

    One with all in it, or from Debian 14 on one each of the kernel, its modules, and the list
    of what is built in.
    """
    image = apt.resolve(arch.kernel_package, _REAL_PACKAGE)
    parts = apt.dependencies(image.name, _PARTS)
    return parts or [image]


def prepare_kernel(debs: Sequence[Path], arch: Architecture, busybox: bytes) -> DebianKernel:
    """Take a kernel's packages apart.

    Args:
        debs: the packages' files.
        arch: its architecture.
        busybox: a static busybox for the initramfs.

    Raises:
        ImageError: the package isn't what we expect.
    """
    release, image, modules = ModuleSet.from_packages(debs)
    try:
        kernel = extract_vmlinux(image) if arch.elf else image
    except KernelError as error:
        raise ImageError(f"{debs[0].name}: {error}") from error
    return DebianKernel(
        release,
        kernel,
        _initramfs(modules, busybox, arch.rootfs),
        _root_files(release, modules, arch.rootfs),
    )


def _boot_modules(modules: ModuleSet, rootfs: str) -> dict[str, tuple[str, ...]]:
    # The library that erofs counts its checksums with asks the kernel for the algorithm, of
    # which no dependency tells.
    return {**_BOOT, "boot": (*_BOOT["boot"], *modules.have(["crc32c_generic"]), rootfs)}


def _initramfs(modules: ModuleSet, busybox: bytes, rootfs: str) -> bytes:
    archive = CpioWriter()
    for path in ("bin", "dev", "modules", "proc", "root"):
        archive.directory(path)
    archive.node("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    archive.file("init", data_file("initramfs-init"), 0o755)
    order: list[str] = []
    packed: set[str] = set()
    wanted = {**_boot_modules(modules, rootfs), "pmem": modules.have(_PMEM)}
    for when, names in wanted.items():
        for module in modules.order(names):
            if module.name not in packed:
                packed.add(module.name)
                order.append(f"{when} {module.name}.ko\n")
                archive.file(f"modules/{module.name}.ko", module.data)
    archive.file("modules/order", "".join(order).encode())
    return archive.finish()


def _root_files(release: str, modules: ModuleSet, rootfs: str) -> dict[str, bytes]:
    wanted = _boot_modules(modules, rootfs)
    background = modules.order(modules.have(_BACKGROUND))
    boot = modules.order(name for names in wanted.values() for name in names)
    demand = modules.order([*modules.have(_ON_DEMAND), *modules.under(*_ON_DEMAND_DIRECTORIES)])
    everything: list[Module] = list({m.name: m for m in (*boot, *background, *demand)}.values())
    base = f"/usr/lib/modules/{release}"
    found = {f"{base}/{module.path}": module.data for module in everything}
    found[f"{base}/modules.dep"] = dependency_table(everything).encode()
    found[f"{base}/modules.alias"] = alias_table(everything).encode()
    early = {module.name for module in modules.order(wanted["boot"])}
    found["/usr/lib/katapy/modules"] = "".join(
        f"{base}/{module.path}\n" for module in background if module.name not in early
    ).encode()
    return found
