"""From configuration to a pod's VM: pure, so that it can run before trio is imported.

The base VM has nothing of the pod in it but its shared directory; everything else is
attached through the same typed devices, cold or hot.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from shim.config.hypervisors import AnyHypervisor, Firecracker, Qemu, SharingHypervisor
from shim.errors import ConfigError
from shim.sizing.numa import numa_nodes
from shim.sizing.vm_size import Demand, Size, size_rule
from shim.sockets import sha256_hex
from vmm.arch import architecture, host_architecture
from vmm.image.errors import ImageError
from vmm.image.store import find_image
from vmm.spec import (
    BalloonDevice,
    BlockDevice,
    Device,
    FsDevice,
    NinePDevice,
    PanicDevice,
    PmemDevice,
    RngDevice,
    VmSpec,
    VsockDevice,
)

if TYPE_CHECKING:
    from shim.config.model import Config

SHARE_TAG = "kataShared"
SharedFs = Literal["virtio-fs", "virtio-9p", "none"]
Channel = Literal["serial", "vsock"]

HOTPLUG_SLOTS = 30
"""Devices that can be plugged into a VM of QEMU's at a time: a bridge full."""
FEW_SLOTS = 12
"""The same for the other VMMs and for root ports, where each costs something."""

# Files of the image that are not compressed are then read in place, without a copy. An
# NVDIMM would need a header that says where its page structures are.
_ROOT_FLAGS = "rootflags=dax=always"
# To warnings: each byte of the serial console is an exit from the guest, and those of the
# kernel's 300 lines are 0.1 s of a boot under emulation.
_FEW_MESSAGES = "loglevel=5"
_HYBRID_CID = 3
_VFIO_PORTS = 4
# Above what systemd and container engines hand out.
_FIRST_USER, _USERS = 0x70000000, 0x0FFF0000
_GROWING = ("q35", "clh")


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A pod's VM and how it sees the host's files.

    Args:
        spec: the VM.
        shared_fs: how the share reaches the guest.
        share_dir: the share on the host, as the guest sees it.
        virtiofsd_socket: where virtiofsd is to listen, for ``virtio-fs``.
        msize: largest 9p message in bytes.
        cold_ports: PCI devices of the host are on root ports of their own at boot.
    """

    spec: VmSpec
    shared_fs: SharedFs
    share_dir: Path
    virtiofsd_socket: Path
    msize: int
    cold_ports: bool = False


def plan_vm(
    config: Config,
    *,
    name: str,
    runtime_dir: Path,
    netns: int | None,
    vsock: VsockDevice | None = None,
    size: Size | None = None,
    whole_9p: bool = True,
) -> VmPlan:
    """Plan a pod's VM.

    Args:
        config: the effective configuration.
        name: shown in the host's process list.
        runtime_dir: short directory for the VM's sockets and the share.
        netns: namespace the VMM runs in, as an open descriptor; None for the host's.
        vsock: the device of the ``vsock`` channel, where the host provides it and not
            the VMM (:func:`needs_vsock`).
        size: what it boots with; None for the size of a pod that asks for nothing.
        whole_9p: over the VMM's 9p a guest can make sockets, FIFOs and device nodes.

    Raises:
        ConfigError: no guest image, or settings that exclude each other.
    """
    vm = config.hypervisor
    rule = size_rule(config)
    size = size or rule.size(Demand())
    machine = choose_machine(config)
    kernel, initrd, rootfs, kernel_args, has_9p = _guest_files(config)
    shared_fs = choose_shared_fs(config, has_9p=has_9p, whole_9p=whole_9p)
    share_dir = runtime_dir / "shared"
    socket = runtime_dir / "virtiofsd.sock"
    channel = choose_channel(config)
    devices: list[Device] = [RngDevice()]
    arch = architecture(config.katapy.guest_arch)
    # Firecracker and microvm have no such device.
    if not (isinstance(vm, Firecracker) or machine == "microvm" or arch.reports_panic):
        devices.append(PanicDevice())
    devices.append(BalloonDevice(free_page_reporting=vm.reclaim_guest_freed_memory))
    if shared_fs == "virtio-fs" and isinstance(vm, SharingHypervisor):
        devices.append(FsDevice("share", SHARE_TAG, socket, vm.virtio_fs_queue_size))
    elif shared_fs == "virtio-9p":
        devices.append(NinePDevice("share", SHARE_TAG, share_dir))
    if not isinstance(vm, Qemu):
        # The VMM's own end of the guest's sockets: the number means nothing outside it.
        devices.append(VsockDevice(cid=_HYBRID_CID, uds=runtime_dir / "vsock.sock"))
    elif vsock is not None:
        devices.append(vsock)
    image = _image(vm, rootfs)
    # Memory that may come above 4 GiB makes Linux set 64 MiB aside for devices that can't
    # reach it; there are none.
    in_place = isinstance(image, PmemDevice) and not image.nvdimm
    flags = _ROOT_FLAGS if in_place else ""
    arguments = [kernel_args, flags, "swiotlb=noforce", f"katapy.channel={channel}"]
    if not vm.enable_debug:
        arguments.append(_FEW_MESSAGES)
    if config.agent.container_pipe_size:
        arguments.append(f"agent.container_pipe_size={config.agent.container_pipe_size}")
    if config.agent.enable_debug:
        arguments.append("agent.log=debug")
    if config.agent.debug_console_enabled:
        arguments.append("agent.debug_console")
    arguments.append(vm.kernel_params)
    fixed = config.runtime.static_sandbox_resource_mgmt
    grows = machine in _GROWING and not fixed
    # From 1.14 on; an older Firecracker refuses a limit, so only one that was set is asked for.
    memory_grows = isinstance(vm, Firecracker) and vm.default_maxmemory > 0 and not fixed
    spec = VmSpec(
        kernel=kernel,
        runtime_dir=runtime_dir,
        # QEMU's command line has no other path of the sandbox for the ledger to find it by.
        name=f"{name}@{runtime_dir}" if isinstance(vm, Qemu) else name,
        arch=config.katapy.guest_arch,
        machine=machine,
        vcpus=size.vcpus,
        max_vcpus=rule.max_vcpus if grows else 0,
        memory_bytes=size.memory_bytes,
        max_memory_bytes=rule.max_memory if grows or memory_grows else 0,
        memory_hotplug="virtio-mem" if vm.enable_virtio_mem else "dimm",
        initrd=initrd,
        cmdline=" ".join(argument for argument in arguments if argument),
        image=image,
        devices=tuple(devices),
        channel=channel,
        netns=netns,
        accel=cast(Literal["auto", "kvm", "tcg"], config.katapy.accelerator),
        sandbox_seccomp=bool(vm.seccompsandbox) if isinstance(vm, Qemu) else not vm.disable_seccomp,
        hotplug_slots=HOTPLUG_SLOTS if isinstance(vm, Qemu) and machine != "virt" else FEW_SLOTS,
        root_ports=_root_ports(vm) if isinstance(vm, Qemu) else 0,
        hugepages=vm.enable_hugepages,
    )
    if isinstance(vm, Qemu):
        spec = replace(
            spec,
            numa=numa_nodes(vm.numa_mapping, spec) if vm.enable_numa else (),
            iommu=vm.enable_iommu,
            scsi=vm.block_device_driver == "virtio-scsi",
            # As in Kata, only where debugging is on.
            extra_monitor=_extra_monitor(vm),
            panic_dump=vm.guest_memory_dump_path,
            user=_own_user(name) if vm.rootless else None,
        )
    msize = vm.msize_9p if isinstance(vm, Qemu) else 0
    cold_ports = isinstance(vm, Qemu) and vm.cold_plug_vfio == "root-port"
    return VmPlan(spec, shared_fs, share_dir, socket, msize, cold_ports)


def _extra_monitor(vm: Qemu) -> Literal["", "hmp", "qmp", "qmp-pretty"]:
    wanted = vm.extra_monitor_socket if vm.enable_debug else ""
    return cast(Literal["", "hmp", "qmp", "qmp-pretty"], wanted)


def _root_ports(vm: Qemu) -> int:
    if vm.pcie_root_port or vm.hot_plug_vfio != "root-port":
        return vm.pcie_root_port
    return _VFIO_PORTS


def _image(vm: AnyHypervisor, rootfs: Path) -> BlockDevice | PmemDevice:
    """The guest's root as the device that it is to be."""
    driver = vm.vm_rootfs_driver if isinstance(vm, Qemu) else "virtio-blk-pci"
    if driver == "virtio-blk-pci":
        return BlockDevice("image", rootfs, read_only=True, shared=True)
    return PmemDevice("image", rootfs, read_only=True, nvdimm=driver == "nvdimm")


def _own_user(name: str) -> tuple[int, int]:
    """A numeric user and group that no other pod's VMM has, nor anybody in passwd(5)."""
    number = _FIRST_USER + int(sha256_hex(name.encode())[:8], 16) % _USERS
    return number, number


def choose_machine(config: Config) -> str:
    """The machine the VM will be.

    Raises:
        ConfigError: the hypervisor has none of the guest's architecture.
    """
    vm = config.hypervisor
    arch = architecture(config.katapy.guest_arch)
    if not isinstance(vm, Qemu):
        if arch.name != host_architecture():
            raise ConfigError(
                f"[katapy] guest_arch = '{arch.name}': [{vm.section}] runs guests of the host's "
                f"architecture, {host_architecture()}; use [hypervisor.qemu]"
            )
        return vm.name
    if vm.machine_type == "auto":
        return arch.machines[0]
    if vm.machine_type not in arch.machines:
        raise ConfigError(
            f"[hypervisor.qemu] machine_type = '{vm.machine_type}': a {arch.name} guest has "
            f"{' or '.join(arch.machines)}"
        )
    return vm.machine_type


def choose_channel(config: Config) -> Channel:
    """How the shim will talk to the agent.

    Raises:
        ConfigError: the hypervisor has no such channel.
    """
    chosen = config.katapy.channel
    if isinstance(config.hypervisor, Qemu):
        return "serial" if chosen == "auto" else cast(Channel, chosen)
    if chosen == "serial":
        raise ConfigError(
            f"[katapy] channel = 'serial': [{config.hypervisor.section}] has only vsock"
        )
    return "vsock"


def needs_vsock(config: Config) -> bool:
    """Whether the host has to provide the VM's vsock device.

    Raises:
        ConfigError: the hypervisor has no such channel.
    """
    return isinstance(config.hypervisor, Qemu) and choose_channel(config) == "vsock"


def choose_shared_fs(config: Config, *, has_9p: bool, whole_9p: bool = True) -> SharedFs:
    """How host directories will get into the guest.

    Args:
        config: the effective configuration.
        has_9p: whether the guest's kernel is known to have 9p.
        whole_9p: see :func:`plan_vm`.

    Raises:
        ConfigError: the guest's kernel has no 9p, or virtio-fs can't reach it.
    """
    vm = config.hypervisor
    chosen = vm.shared_fs
    arch = architecture(config.katapy.guest_arch)
    if arch.byte_order != sys.byteorder and isinstance(vm, Qemu):
        # The messages of virtio-fs are in the guest's order, and no virtiofsd turns them round.
        if chosen == "virtio-fs" or vm.rootless:
            key = "shared_fs = 'virtio-fs'" if chosen == "virtio-fs" else "rootless = true"
            raise ConfigError(
                f"[{vm.section}] {key}: a {arch.name} guest has the other byte order than this "
                "host, so its files can only come by 9p, for which QEMU must be root"
            )
        chosen = "virtio-9p" if chosen == "auto" else chosen
    if chosen == "auto":
        if not isinstance(vm, SharingHypervisor):
            return "none"
        # 9p is the faster one under emulation, but Debian's cloud kernel lacks it.
        ninep = has_9p and whole_9p and isinstance(vm, Qemu) and not vm.rootless
        return "virtio-9p" if ninep else "virtio-fs"
    if chosen == "virtio-9p" and not has_9p and vm.kernel is None:
        raise ConfigError(
            f"[{vm.section}] shared_fs = 'virtio-9p' needs a guest kernel with 9p: "
            "set [katapy] guest_kernel = 'tuned' (katapy image build --kernel tuned)"
        )
    return cast(SharedFs, chosen)


def _guest_files(config: Config) -> tuple[Path, Path | None, Path, str, bool]:
    """Kernel, initrd, root, kernel arguments, and whether the kernel is known to have 9p."""
    vm = config.hypervisor
    if vm.kernel is not None and vm.image is not None:
        root = "rootfstype=erofs ro"
        return vm.kernel, vm.initrd, vm.image, root, False
    chosen = config.katapy.guest_kernel
    kind = None if chosen == "auto" else cast(Literal["debian", "tuned"], chosen)
    try:
        image = find_image(config.katapy.cache_dir, kind, config.katapy.guest_arch)
    except ImageError as err:
        raise ConfigError(str(err)) from err
    return (
        vm.kernel or image.kernel,
        vm.initrd or image.initrd,
        vm.image or image.rootfs,
        image.kernel_args,
        image.kind == "tuned" or architecture(image.architecture).has_9p,
    )
