"""From configuration to a pod's VM: pure, so that it can run before trio is imported.

The base VM has nothing of the pod in it but its shared directory; everything else is
attached through the same typed devices, cold or hot.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from shim.errors import ConfigError
from vmm.image.errors import ImageError
from vmm.image.store import find_image
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    Device,
    FsDevice,
    NinePDevice,
    PanicDevice,
    RngDevice,
    VmSpec,
)

if TYPE_CHECKING:
    from shim.config.model import Config

SHARE_TAG = "kataShared"
SharedFs = Literal["virtio-fs", "virtio-9p", "none"]


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A pod's VM and how it sees the host's files.

    Args:
        spec: the VM.
        shared_fs: how the share reaches the guest.
        share_dir: the share on the host.
        virtiofsd_socket: where virtiofsd is to listen, for ``virtio-fs``.
        msize: largest 9p message in bytes.
    """

    spec: VmSpec
    shared_fs: SharedFs
    share_dir: Path
    virtiofsd_socket: Path
    msize: int


def plan_vm(config: Config, *, name: str, runtime_dir: Path, netns: int | None) -> VmPlan:
    """Plan a pod's VM.

    Args:
        config: the effective configuration.
        name: shown in the host's process list.
        runtime_dir: short directory for the VM's sockets and the share.
        netns: namespace the VMM runs in, as an open descriptor; None for the host's.

    Raises:
        ConfigError: no guest image, or settings that exclude each other.
    """
    vm = config.hypervisor
    kernel, initrd, rootfs, kernel_args, tuned = _guest_files(config)
    shared_fs = _shared_fs(config, tuned=tuned)
    share_dir = runtime_dir / "shared"
    socket = runtime_dir / "virtiofsd.sock"
    devices: list[Device] = [RngDevice(), PanicDevice()]
    devices.append(BalloonDevice(free_page_reporting=vm.reclaim_guest_freed_memory))
    if shared_fs == "virtio-fs":
        devices.append(FsDevice("share", SHARE_TAG, socket, vm.virtio_fs_queue_size))
    elif shared_fs == "virtio-9p":
        devices.append(NinePDevice("share", SHARE_TAG, share_dir))
    cpus = os.cpu_count() or 1
    arguments = [kernel_args, f"katapy.channel={config.katapy.channel}"]
    if config.agent.enable_debug:
        arguments.append("agent.log=debug")
    arguments.append(vm.kernel_params)
    hot = vm.machine_type == "q35"
    spec = VmSpec(
        kernel=kernel,
        runtime_dir=runtime_dir,
        name=name,
        machine=vm.machine_type,
        vcpus=vm.boot_vcpus(cpus),
        max_vcpus=vm.max_vcpus(cpus) if hot else 0,
        memory_bytes=vm.default_memory * MIB,
        initrd=initrd,
        cmdline=" ".join(argument for argument in arguments if argument),
        image=BlockDevice("image", rootfs, read_only=True, shared=True),
        devices=tuple(devices),
        channel=cast(Literal["serial", "vsock"], config.katapy.channel),
        netns=netns,
        accel=cast(Literal["auto", "kvm", "tcg"], config.katapy.accelerator),
        sandbox_seccomp=bool(vm.seccompsandbox),
    )
    return VmPlan(spec, shared_fs, share_dir, socket, vm.msize_9p)


def plan_pod(
    config: Config,
    spec: dict[str, Any],
    *,
    sandbox_id: str,
    runtime_dir: Path,
    netns: int | None,
) -> VmPlan:
    """Plan a pod's VM from the OCI spec of its first container.

    The one place that knows what of a spec the VM starts with: it is planned here both
    before trio is imported and when Create comes, and only equal plans are the same VM.

    Args:
        config: the effective configuration.
        spec: the OCI spec.
        sandbox_id: the pod's id.
        runtime_dir, netns: as in :func:`plan_vm`.

    Raises:
        ConfigError: as :func:`plan_vm`.
    """
    return plan_vm(config, name=f"katapy-{sandbox_id}", runtime_dir=runtime_dir, netns=netns)


def _guest_files(config: Config) -> tuple[Path, Path | None, Path, str, bool]:
    """Kernel, initrd, root, kernel arguments, and whether the kernel is the tuned one."""
    vm = config.hypervisor
    if vm.kernel is not None and vm.image is not None:
        root = "root=/dev/vda rootfstype=erofs ro"
        return vm.kernel, vm.initrd, vm.image, root, False
    chosen = config.katapy.guest_kernel
    kind = None if chosen == "auto" else cast(Literal["debian", "tuned"], chosen)
    try:
        image = find_image(config.katapy.cache_dir, kind)
    except ImageError as err:
        raise ConfigError(str(err)) from err
    return (
        vm.kernel or image.kernel,
        vm.initrd or image.initrd,
        vm.image or image.rootfs,
        image.kernel_args,
        image.kind == "tuned",
    )


def _shared_fs(config: Config, *, tuned: bool) -> SharedFs:
    chosen = config.hypervisor.shared_fs
    if chosen == "auto":
        # 9p is the faster one under emulation, but Debian's cloud kernel lacks it.
        return "virtio-9p" if tuned else "virtio-fs"
    if chosen == "virtio-9p" and not tuned and config.hypervisor.kernel is None:
        raise ConfigError(
            "[hypervisor.qemu] shared_fs = 'virtio-9p' needs a guest kernel with 9p: "
            "set [katapy] guest_kernel = 'tuned' (katapy image build --kernel tuned)"
        )
    return cast(SharedFs, chosen)
