"""What pods' VMs are made with, by configuration: the hypervisor's backend and its helpers.

Besides the CLI the only module that names a concrete VM backend.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from shim.config.hypervisors import Firecracker, Name, Qemu, SharingHypervisor
from shim.errors import ConfigError
from shim.pod.builder import Backends, MakeHypervisor
from vmm.arch import architecture
from vmm.errors import Unsupported
from vmm.virtiofsd import ShareOptions, run_virtiofsd

if TYPE_CHECKING:
    from pathlib import Path

    from shim.config.model import Config
    from shim.pod.vm import Helper
    from shim.pod.vm_plan import VmPlan
    from vmm.hypervisor import Hypervisor, Recorder
    from vmm.spec import VmSpec, VsockDevice

_WHOLE_9P = (10, 0, 0)
_SMALL_PAGE = 4096
_BACKENDS: dict[Name, tuple[str, str]] = {
    "qemu": ("vmm.qemu.qemu", "QemuHypervisor"),
    "firecracker": ("vmm.firecracker.firecracker", "FirecrackerHypervisor"),
    "clh": ("vmm.cloud_hypervisor.cloud_hypervisor", "CloudHypervisor"),
}


def load_backends(config: Config) -> Backends:
    """Import the configured hypervisor's backend, and no other.

    Raises:
        ConfigError: there is no such backend here.
    """
    return Backends(
        hypervisor=_hypervisor(_load_class(config.hypervisor.name)),
        virtiofsd=_make_virtiofsd,
        vsock=_reserve_vsock,
        vsock_daemon=_make_vsock_daemon,
        whole_9p=whole_9p,
    )


def whole_9p(config: Config) -> bool:
    """Whether a guest can make sockets, FIFOs and device nodes over the VMM's 9p. Blocks.

    QEMU 7.2 as Debian 12 has it can't (ENXIO, of its mending of CVE-2023-2861), 10.0 can.
    True where nothing is to be chosen by it: a guest with pages of 64 KiB (ppc64le) runs no
    program off virtio-fs (seen with QEMU 7.2), so it has no other way.

    Raises:
        VmmError: there is no such QEMU.
    """
    vm = config.hypervisor
    arch = architecture(config.katapy.guest_arch)
    if not isinstance(vm, Qemu) or vm.shared_fs != "auto" or arch.page_size > _SMALL_PAGE:
        return True
    from vmm.qemu import probe

    binary = probe.find_binary(arch, vm.path or "")
    return probe.probe(binary, config.katapy.cache_dir).version >= _WHOLE_9P


def _load_class(name: Name) -> Callable[..., Hypervisor]:
    module, attribute = _BACKENDS[name]
    try:
        found: Callable[..., Hypervisor] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as err:
        if err.name is None or not module.startswith(err.name):
            raise
        raise ConfigError(
            f"[hypervisor.{name}]: this katapy has no backend for it ({module} is missing); "
            "use [hypervisor.qemu]"
        ) from err
    return found


def _hypervisor(made_by: Callable[..., Hypervisor]) -> MakeHypervisor:
    def make(spec: VmSpec, config: Config, record: Recorder) -> Hypervisor:
        vm = config.hypervisor
        own: dict[str, Any] = {}
        if isinstance(vm, Qemu):
            own["cache_dir"] = config.katapy.cache_dir
        elif isinstance(vm, Firecracker):
            own["pci"] = vm.enable_pci
            if vm.jailer_path is not None:
                from vmm.firecracker.jail import Jailer

                own["jailer"] = Jailer(vm.jailer_path)
        return made_by(spec, binary=vm.path or "", record=record, **own)

    return make


def _make_virtiofsd(
    plan: VmPlan, config: Config, record: Recorder
) -> AbstractAsyncContextManager[Helper]:
    vm = config.hypervisor
    assert isinstance(vm, SharingHypervisor), "only these are planned with virtio-fs"
    cache = {"metadata": "auto"}.get(vm.virtio_fs_cache, vm.virtio_fs_cache)

    @asynccontextmanager
    async def run() -> AsyncIterator[Helper]:
        async with run_virtiofsd(
            plan.share_dir,
            plan.virtiofsd_socket,
            binary=vm.virtio_fs_daemon or "",
            options=ShareOptions(cache=cache, extra=vm.virtio_fs_extra_args),  # type: ignore[arg-type]
            record=record,
        ) as process:
            yield process

    return run()


def _reserve_vsock(runtime_dir: Path) -> VsockDevice:
    from vmm.vsock import daemon_device, open_vhost

    try:
        return open_vhost()
    except Unsupported:
        return daemon_device(runtime_dir)


def _make_vsock_daemon(
    runtime_dir: Path, config: Config, record: Recorder
) -> AbstractAsyncContextManager[Helper]:
    from vmm.vsock import run_vhost_device_vsock

    binary = config.katapy.vhost_device_vsock or "vhost-device-vsock"
    return run_vhost_device_vsock(runtime_dir, binary=binary, record=record)
