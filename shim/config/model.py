"""The configuration as one typed, frozen model.

Sections and keys carry Kata's names (``configuration-qemu.toml`` of both of its
runtimes) wherever Kata has the key; ``[katapy]`` holds what Kata has no key for.
A default that differs from Kata's says why. Keys of Kata's that mean nothing here yet
are data in :mod:`shim.config.kata_keys`.
"""

# ruff: noqa: RUF009 - key() declares a field, and paths are immutable

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from shim.config import rules
from shim.config.rules import key

_HOST_CPUS = ", where 0 stands for 1 and a negative number for all CPUs of the host"
_MAX_VCPUS = 1024
_MAX_MIB = 64 << 20
_MAX_ROOT_PORTS = 64

# QEMU's -sandbox argument that denies what no feature here needs; Kata recommends the same.
QEMU_SECCOMP = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Qemu:
    """``[hypervisor.qemu]``: the VM and its devices. Memory sizes are in MiB."""

    path: Path | None = key(None, rules.found_path("the host architecture's QEMU on the PATH"))
    machine_type: str = key("q35", rules.choice("q35", "microvm"))
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

    default_vcpus: float = key(1.0, rules.number(-1, _MAX_VCPUS, _HOST_CPUS))
    default_maxvcpus: int = key(0, rules.integer(0, _MAX_VCPUS))
    default_memory: int = key(2048, rules.integer(128, _MAX_MIB, "MiB"))
    default_maxmemory: int = key(0, rules.integer(0, _MAX_MIB, "MiB"))
    # Kata leaves it off where DIMMs work; only virtio-mem can shrink again.
    enable_virtio_mem: bool = key(True, rules.flag())
    # Kata leaves it off; a guest that keeps every page it ever touched is what its users
    # complain of most, and free page reporting costs nothing measurable.
    reclaim_guest_freed_memory: bool = key(True, rules.flag())

    # "auto" is ours: 9p reads five times faster than virtio-fs under TCG and needs no
    # daemon, but wants a guest kernel that has it.
    shared_fs: str = key("auto", rules.choice("auto", "virtio-fs", "virtio-9p", "none"))
    virtio_fs_daemon: Path | None = key(None, rules.found_path("the virtiofsd of the distribution"))
    virtio_fs_extra_args: tuple[str, ...] = key((), rules.texts())
    virtio_fs_cache: str = key("auto", rules.choice("auto", "always", "metadata", "never"))
    virtio_fs_queue_size: int = key(1024, rules.integer(2, 1024))
    # Kata's 8192 makes reads many times slower than the largest one that is useful.
    msize_9p: int = key(512000, rules.integer(4096, 1 << 20, "bytes"))

    block_device_driver: str = key("virtio-blk", rules.choice("virtio-blk", "virtio-blk-pci"))
    block_device_cache_direct: bool = key(False, rules.flag())
    disable_block_device_use: bool = key(False, rules.flag())
    # Kata's 0 leaves nothing to plug a device into.
    pcie_root_port: int = key(12, rules.integer(0, _MAX_ROOT_PORTS))

    # Kata's default is "", no filter.
    seccompsandbox: str = key(QEMU_SECCOMP, rules.choice("", QEMU_SECCOMP))
    enable_debug: bool = key(False, rules.flag())

    def boot_vcpus(self, host_cpus: int) -> int:
        """Return how many vCPUs a VM boots with before any request is added to it."""
        if self.default_vcpus < 0:
            return host_cpus
        return max(1, math.ceil(self.default_vcpus))

    def max_vcpus(self, host_cpus: int) -> int:
        """Return how many vCPUs a VM may ever have; 0 in the file means the host's number."""
        return max(self.default_maxvcpus or host_cpus, self.boot_vcpus(host_cpus))

    def max_memory(self, host_mib: int) -> int:
        """Return the MiB a VM may ever have; 0 in the file means the host's memory."""
        return max(self.default_maxmemory or host_mib, self.default_memory)


@dataclass(frozen=True, slots=True)
class Agent:
    """``[agent.kata]``: the agent in the guest. Times are in seconds."""

    dial_timeout: int = key(45, rules.integer(1, 3600, "seconds"))
    kernel_modules: tuple[str, ...] = key((), rules.texts())
    enable_debug: bool = key(False, rules.flag())


@dataclass(frozen=True, slots=True)
class Runtime:
    """``[runtime]``: the shim. Times are in seconds."""

    enable_debug: bool = key(False, rules.flag())
    create_container_timeout: int = key(60, rules.integer(1, 86400, "seconds"))
    # Kata drops the profile by default; the guest's crun applies it at no cost in start
    # time worth the loss.
    disable_guest_seccomp: bool = key(False, rules.flag())
    kubelet_root_dir: Path = key(Path("/var/lib/kubelet"), rules.path())
    disable_guest_empty_dir: bool = key(True, rules.flag())
    emptydir_mode: str = key("shared-fs", rules.choice("shared-fs", "block-plain"))
    sandbox_bind_mounts: tuple[str, ...] = key((), rules.texts())


@dataclass(frozen=True, slots=True)
class Katapy:
    """``[katapy]``: what Kata has no key for."""

    accelerator: str = key("auto", rules.choice("auto", "kvm", "tcg"))
    channel: str = key("serial", rules.choice("serial", "vsock"))
    vhost_device_vsock: Path | None = key(None, rules.found_path("vhost-device-vsock on the PATH"))
    guest_kernel: str = key("auto", rules.choice("auto", "debian", "tuned"))
    cache_dir: Path = key(Path("/var/cache/katapy"), rules.path())


SECTIONS: Mapping[str, type] = MappingProxyType(
    {"hypervisor.qemu": Qemu, "agent.kata": Agent, "runtime": Runtime, "katapy": Katapy}
)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a shim or a verb of the CLI is configured with.

    ``sources`` are the files (and the runtime option) it was made from, in the order
    they were applied; ``origins`` maps ``section.key`` to the one that set it;
    ``warnings`` are for the log.
    """

    hypervisor: Qemu = field(default_factory=Qemu)
    agent: Agent = field(default_factory=Agent)
    runtime: Runtime = field(default_factory=Runtime)
    katapy: Katapy = field(default_factory=Katapy)
    sources: tuple[str, ...] = field(default=(), compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
