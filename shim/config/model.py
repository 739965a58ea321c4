"""The configuration as one typed, frozen model.

Sections and keys carry Kata's names (the ``configuration-*.toml`` of both of its
runtimes) wherever Kata has the key; ``[katapy]`` holds what Kata has no key for.
A default that differs from Kata's says why. The hypervisors' sections are in
:mod:`shim.config.hypervisors`; keys of Kata's that mean nothing here yet
are data in :mod:`shim.config.kata_keys`.
"""

# ruff: noqa: RUF009 - key() declares a field, and paths are immutable

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from shim.config import rules
from shim.config.hypervisors import HYPERVISORS, NAMES, AnyHypervisor, Qemu
from shim.config.rules import key
from shim.config.shared_mount import SharedMount, shared_mounts
from vmm.arch import ARCHITECTURES


@dataclass(frozen=True, slots=True)
class Agent:
    """``[agent.kata]``: the agent in the guest. Times are in seconds."""

    dial_timeout: int = key(45, rules.integer(1, 3600, "seconds"))
    kernel_modules: tuple[str, ...] = key((), rules.texts())
    # 0 is the agent's own, which is large already.
    container_pipe_size: int = key(0, rules.integer(0, 1 << 24, "bytes"))
    enable_debug: bool = key(False, rules.flag())


@dataclass(frozen=True, slots=True)
class Runtime:
    """``[runtime]``: the shim. Times are in seconds."""

    hypervisor_name: str = key("", rules.choice("", *NAMES))
    enable_debug: bool = key(False, rules.flag())
    create_container_timeout: int = key(60, rules.integer(1, 86400, "seconds"))
    # Kata drops the profile by default; the guest's crun applies it at no cost in start
    # time worth the loss.
    disable_guest_seccomp: bool = key(False, rules.flag())
    kubelet_root_dir: Path = key(Path("/var/lib/kubelet"), rules.path())
    disable_guest_empty_dir: bool = key(True, rules.flag())
    emptydir_mode: str = key("shared-fs", rules.choice("shared-fs", "block-plain"))
    sandbox_bind_mounts: tuple[str, ...] = key((), rules.texts())
    shared_mounts: tuple[SharedMount, ...] = key((), shared_mounts())
    internetworking_model: str = key("tcfilter", rules.choice("tcfilter", "macvtap", "none"))
    disable_new_netns: bool = key(False, rules.flag())
    dan_conf: Path = key(Path("/run/kata-containers/dans"), rules.path())
    vfio_mode: str = key("guest-kernel", rules.choice("guest-kernel", "vfio"))
    static_sandbox_resource_mgmt: bool = key(False, rules.flag())
    enable_vcpus_pinning: bool = key(False, rules.flag())
    # As runtime-rs has it; cgroup version 2 allows nothing else.
    sandbox_cgroup_only: bool = key(True, rules.flag())


@dataclass(frozen=True, slots=True)
class Katapy:
    """``[katapy]``: what Kata has no key for."""

    accelerator: str = key("auto", rules.choice("auto", "kvm", "tcg"))
    channel: str = key("auto", rules.choice("auto", "serial", "vsock"))
    vhost_device_vsock: Path | None = key(None, rules.found_path("vhost-device-vsock on the PATH"))
    guest_arch: str = key("", rules.choice("", *ARCHITECTURES))
    guest_kernel: str = key("auto", rules.choice("auto", "debian", "tuned"))
    cache_dir: Path = key(Path("/var/cache/katapy"), rules.path())
    host_network: str = key("refuse", rules.choice("refuse", "none", "proxy"))
    socket_directories: tuple[str, ...] = key((), rules.texts())
    slirp4netns: Path | None = key(None, rules.found_path("slirp4netns on the PATH"))


SECTIONS: Mapping[str, type] = MappingProxyType(
    {
        **{f"hypervisor.{model.name}": model for model in HYPERVISORS},
        "agent.kata": Agent,
        "runtime": Runtime,
        "katapy": Katapy,
    }
)
"""Section → its model. Of the hypervisors' sections one applies."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a shim or a verb of the CLI is configured with.

    ``sources`` are the files (and the runtime option) it was made from, in the order
    they were applied; ``origins`` maps ``section.key`` to the one that set it;
    ``warnings`` are for the log.
    """

    hypervisor: AnyHypervisor = field(default_factory=Qemu)
    agent: Agent = field(default_factory=Agent)
    runtime: Runtime = field(default_factory=Runtime)
    katapy: Katapy = field(default_factory=Katapy)
    sources: tuple[str, ...] = field(default=(), compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def sections(self) -> dict[str, AnyHypervisor | Agent | Runtime | Katapy]:
        """Return what applies by the sections' names."""
        return {
            self.hypervisor.section: self.hypervisor,
            "agent.kata": self.agent,
            "runtime": self.runtime,
            "katapy": self.katapy,
        }
