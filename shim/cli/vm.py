"""What the host offers to run VMs with: accelerator, VMM, shared directories, channel."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from shim.cli.findings import Finding, Level
from shim.cli.guest import may_have_9p
from shim.config.hypervisors import Qemu, SharingHypervisor
from shim.errors import ConfigError
from shim.pod.vm_plan import choose_channel, choose_shared_fs
from vmm.arch import architecture, host_architecture
from vmm.errors import InvalidConfig
from vmm.virtiofsd import PLACES, find_binary

if TYPE_CHECKING:
    from shim.config.hypervisors import AnyHypervisor
    from shim.config.model import Config
    from vmm.qemu.machines import Machine
    from vmm.qemu.probe import QemuFeatures

VSOCK_DAEMON = "vhost-device-vsock"

_PROGRAMS = {"firecracker": "firecracker", "clh": "cloud-hypervisor"}

_VHOST_VSOCK = Path("/dev/vhost-vsock")


def accelerator(config: Config) -> Iterable[Finding]:
    """KVM, proved by a small VM, or emulation."""
    from vmm.qemu import accel

    wanted = cast('Literal["auto", "kvm", "tcg"]', config.katapy.accelerator)
    name = "accelerator"
    try:
        chosen = accel.choose(wanted, architecture(config.katapy.guest_arch))
    except InvalidConfig as error:
        yield Finding(name, Level.FAIL, str(error), 'set accelerator = "auto" in [katapy]')
        return
    if chosen.name == "kvm":
        yield Finding(name, Level.OK, "KVM works: a test VM ran")
    elif wanted == "tcg":
        yield Finding(name, Level.OK, "emulation, as configured")
    else:
        arch = architecture(config.katapy.guest_arch)
        if arch.name == host_architecture():
            advice = "turn virtualization on in the firmware (or in the outer VM) and load kvm"
        else:
            advice = f"pods of {arch.name} are faster on a host of {arch.name}"
        text = f"emulation, many times slower than KVM: {chosen.why_not_kvm}"
        yield Finding(name, Level.WARN, text, advice)


def hypervisor(config: Config) -> Iterable[Finding]:
    """The VMM, with what the configuration needs of it."""
    vm = config.hypervisor
    if isinstance(vm, Qemu):
        yield from _qemu(vm, config.katapy.guest_arch)
        return
    name = _PROGRAMS[vm.name]
    if config.katapy.accelerator == "tcg":
        advice = 'set accelerator = "auto" in [katapy], or use [hypervisor.qemu]'
        yield Finding(name, Level.FAIL, f"{name} has no emulation", advice)
    if program := find_program(vm):
        yield Finding(name, Level.OK, str(program))
    else:
        advice = f"install {name}, or set path in [{vm.section}]"
        yield Finding(name, Level.FAIL, f"no {vm.path or f'{name} on the PATH'}", advice)


def find_program(vm: AnyHypervisor) -> Path | None:
    """Return the program of a hypervisor other than QEMU, None when there is none."""
    found = shutil.which(vm.path or _PROGRAMS[vm.name])
    return Path(found) if found else None


def _qemu(vm: Qemu, guest_arch: str) -> Iterable[Finding]:
    from vmm.qemu import probe
    from vmm.qemu.machines import find_machine

    arch = architecture(guest_arch)
    machine = arch.machines[0] if vm.machine_type == "auto" else vm.machine_type
    try:
        binary = probe.find_binary(arch, vm.path or "")
        features = probe.probe(binary)
    except InvalidConfig as error:
        advice = "install qemu-system (7.2 or later), or set path in [hypervisor.qemu]"
        yield Finding("QEMU", Level.FAIL, str(error), advice)
        return
    package = f" ({features.package})" if features.package else ""
    yield Finding("QEMU", Level.OK, f"{binary} {features.version_text}{package}")
    try:
        found = find_machine(arch, machine)
    except InvalidConfig as error:
        yield Finding("QEMU", Level.FAIL, str(error), "correct machine_type in [hypervisor.qemu]")
        return
    for missing, level in _missing(vm, machine, found, features):
        advice = "install a QEMU that is built with it, or change [hypervisor.qemu]"
        yield Finding("QEMU", level, f"{binary} has no {missing}", advice)


def _missing(
    vm: Qemu, name: str, machine: Machine, features: QemuFeatures
) -> Iterable[tuple[str, Level]]:
    bus = "ccw" if machine.transport == "ccw" else "pci"  # a QEMU has on MMIO what it has on PCI
    if name not in features.machines:
        yield f"machine type {name}", Level.FAIL
    if vm.seccompsandbox and not features.sandbox:
        yield "seccomp (seccompsandbox)", Level.FAIL
    if vm.shared_fs == "virtio-fs" and f"vhost-user-fs-{bus}" not in features.devices:
        yield f"vhost-user-fs-{bus} (shared_fs)", Level.FAIL
    if vm.shared_fs == "virtio-9p" and f"virtio-9p-{bus}" not in features.devices:
        yield f"virtio-9p-{bus} (shared_fs)", Level.FAIL
    if vm.enable_virtio_mem and machine.grows and "virtio-mem-pci" not in features.devices:
        yield "virtio-mem-pci (enable_virtio_mem)", Level.WARN


def shared_directories(config: Config) -> Iterable[Finding]:
    """virtiofsd, or 9p in its place."""
    name, vm = "shared directories", config.hypervisor
    if not isinstance(vm, SharingHypervisor):
        text = f"none: {_PROGRAMS[vm.name]} has none; only block devices reach the guest"
        yield Finding(name, Level.OK, text)
        return
    if vm.shared_fs == "none":
        yield Finding(name, Level.OK, "none, as configured: only block devices reach the guest")
        return
    has_9p = isinstance(vm, Qemu) and may_have_9p(config)
    arch = architecture(config.katapy.guest_arch)
    if isinstance(vm, Qemu) and arch.byte_order != sys.byteorder:
        try:
            choose_shared_fs(config, has_9p=has_9p)
            yield Finding(name, Level.OK, f"9p, as {arch.name} has the other byte order")
        except ConfigError as error:
            advice = f'set shared_fs = "auto" and rootless = false in [{vm.section}]'
            yield Finding(name, Level.FAIL, str(error), advice)
        return
    if vm.shared_fs == "virtio-9p":
        if has_9p:
            yield Finding(name, Level.OK, "9p, as configured")
        else:
            advice = 'run `katapy image build --kernel tuned`, or set shared_fs = "virtio-fs"'
            yield Finding(name, Level.FAIL, "Debian's cloud kernel has no 9p", advice)
        return
    daemon = find_virtiofsd(vm.virtio_fs_daemon)
    if daemon is not None:
        yield Finding(name, Level.OK, f"virtio-fs by {daemon}")
        return
    wanted = vm.virtio_fs_daemon or " or ".join(PLACES)
    advice = "install virtiofsd (Debian 12 has it in qemu-system-common)"
    if vm.shared_fs == "auto" and has_9p:
        yield Finding(name, Level.WARN, f"9p only: no virtiofsd at {wanted}", advice)
    else:
        yield Finding(name, Level.FAIL, f"no virtiofsd at {wanted}", advice)


def find_virtiofsd(configured: Path | None) -> Path | None:
    """Return the virtiofsd that pods get, None when there is none."""
    try:
        return find_binary(configured or "")
    except InvalidConfig:
        return None


def channel(config: Config, vhost_vsock: Path = _VHOST_VSOCK) -> Iterable[Finding]:
    """How the shim will talk to the guest agent."""
    name = "agent channel"
    try:
        chosen = choose_channel(config)
    except ConfigError as error:
        yield Finding(name, Level.FAIL, str(error), 'set channel = "auto" in [katapy]')
        return
    if chosen == "serial":
        yield Finding(name, Level.OK, "virtio-serial")
        return
    if not isinstance(config.hypervisor, Qemu):
        yield Finding(name, Level.OK, f"vsock by {_PROGRAMS[config.hypervisor.name]} itself")
        return
    try:
        os.close(os.open(vhost_vsock, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        problem = f"{vhost_vsock}: {error.strerror}"
    else:
        yield Finding(name, Level.OK, f"vsock by the kernel, {vhost_vsock}")
        return
    configured = config.katapy.vhost_device_vsock
    if daemon := shutil.which(configured or VSOCK_DAEMON):
        yield Finding(name, Level.OK, f"vsock by {daemon} ({problem})")
    else:
        wanted = configured or f"{VSOCK_DAEMON} on the PATH"
        advice = f'`modprobe vhost_vsock`, install {VSOCK_DAEMON}, or set channel = "serial"'
        yield Finding(name, Level.FAIL, f"{problem}; no {wanted}", advice)
