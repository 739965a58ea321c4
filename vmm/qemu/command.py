"""QEMU's command line for a VM. Pure, and standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm.arch import architecture
from vmm.errors import InvalidConfig
from vmm.qemu import memory
from vmm.qemu.kernel_line import kernel_arguments
from vmm.qemu.machines import machine_of
from vmm.qemu.memory import memory_arguments, virtio_mem_arguments
from vmm.qemu.plan import AGENT_PORT_ID, SCSI_ID
from vmm.qemu.steps import IOMMU_OPTIONS, key_values, virtio_driver
from vmm.spec import MIB, BlockDevice, NetDevice, NinePDevice, PmemDevice, SerialDevice

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmm.qemu.accel import Accelerator
    from vmm.qemu.plan import Plan
    from vmm.qemu.probe import QemuFeatures
    from vmm.spec import VmSpec


# The firmware leaves no addresses for devices to come behind a bridge that looks empty.
_BRIDGE_ROOM = "io-reserve=4k,mem-reserve=16m,pref64-reserve=32m"
_GIVES_CARDS_AWAY = (8, 0, 0)
_BRIDGE_CHASSIS = 100  # apart from the root ports' numbers


@dataclass(frozen=True)
class Listeners:
    """Numbers of the listening sockets QEMU inherits.

    Args:
        qmp: control socket.
        console: guest console, or None.
        ports: virtio-serial ports by device id.
        extra_monitor: second monitor, or None.
    """

    qmp: int
    console: int | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    extra_monitor: int | None = None

    def all(self) -> tuple[int, ...]:
        """Return every descriptor."""
        others = (fd for fd in (self.console, self.extra_monitor) if fd is not None)
        return (self.qmp, *others, *self.ports.values())


def build(
    spec: VmSpec,
    plan: Plan,
    *,
    binary: Path,
    features: QemuFeatures,
    accelerator: Accelerator,
    listeners: Listeners,
    tsc_khz: int,
) -> list[str]:
    """Return the command line.

    Args:
        spec: the VM.
        plan: its devices, placed.
        binary: the QEMU program.
        features: what this QEMU has.
        accelerator: what runs the guest's instructions.
        listeners: inherited sockets.
        tsc_khz: rate of the host's counter in kHz, for emulation; 0 when unknown.

    Raises:
        InvalidConfig: the spec can't be built with this QEMU.
    """
    check(spec, features)
    _check_daemons_cards(spec, features, accelerator)
    return [
        str(binary),
        *("-name", f"guest={spec.name.replace(',', ',,')},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S"),
        *_machine(spec, accelerator),
        *_cpus(spec, accelerator),
        *memory_arguments(spec),
        *_sandbox(spec, features),
        *_user(spec, features),
        *(["-action", "panic=pause"] if spec.panic_dump is not None else []),
        *(["-incoming", "defer"] if spec.restored else []),
        *_listener("qmp", listeners.qmp),
        *_monitor(features),
        *_extra_monitor(spec, features, listeners),
        *_console(listeners),
        *kernel_arguments(spec, accelerator, tsc_khz),
        *_iommu(spec),
        *_ports(plan),
        *_devices(plan, listeners),
        *virtio_mem_arguments(spec, plan),
        *spec.extra_args,
    ]


def _check_daemons_cards(spec: VmSpec, features: QemuFeatures, accelerator: Accelerator) -> None:
    if accelerator.name == "kvm" or features.version >= _GIVES_CARDS_AWAY:
        return
    for device in spec.devices:
        if isinstance(device, NetDevice) and device.socket is not None:
            # It unmasks a notifier of the configuration's interrupt that such a card has none of.
            raise InvalidConfig(
                f"{device.id}: QEMU {features.version_text} crashes under emulation when a "
                "vhost-user daemon takes a card over; QEMU 10 does not"
            )


def check(spec: VmSpec, features: QemuFeatures) -> None:
    """Raise unless the spec can be built.

    Raises:
        InvalidConfig: it names what is missing or wrong.
    """
    machine = machine_of(spec)
    if spec.machine not in features.machines:
        raise InvalidConfig(f"QEMU {features.version_text} has no machine type {spec.machine}")
    for what, path in (("kernel", spec.kernel), ("initrd", spec.initrd)):
        if path is not None and not path.is_file():
            raise InvalidConfig(f"{what}: no file at {path}")
    if spec.vcpus < 1 or spec.memory_bytes < MIB or spec.memory_bytes % MIB:
        raise InvalidConfig("a VM needs at least one CPU and whole MiB of memory")
    memory.check(spec)
    if spec.sandbox_seccomp and not features.sandbox:
        raise InvalidConfig(f"QEMU {features.version_text} is built without seccomp")
    if spec.iommu and not machine.iommu:
        raise InvalidConfig(f"iommu: only q35 has one, not {spec.machine}")
    if _has_nvdimm(spec) and not machine.nvdimm:
        raise InvalidConfig(f"an NVDIMM needs q35 or pc, not {spec.machine}")
    for device in spec.devices:
        if isinstance(device, NinePDevice) and spec.user is not None:
            raise InvalidConfig(f"{device.id}: 9p needs a QEMU that runs as root")
        if isinstance(device, BlockDevice) and device.bus == "scsi" and not spec.scsi:
            raise InvalidConfig(f"{device.id}: a SCSI disk needs the spec's scsi")
    grows = spec.vcpu_limit > spec.vcpus or spec.memory_limit > spec.memory_bytes
    if grows and not machine.grows:
        raise InvalidConfig(
            f"QEMU's {spec.machine} can't grow: max_vcpus and max_memory_bytes must be 0"
        )


def _has_nvdimm(spec: VmSpec) -> bool:
    return any(isinstance(d, PmemDevice) and d.nvdimm for d in (spec.image, *spec.devices))


def _iommu(spec: VmSpec) -> list[str]:
    if not spec.iommu:
        return []
    # Before every other device, which it would not see.
    return ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]


def _machine(spec: VmSpec, accelerator: Accelerator) -> list[str]:
    machine = machine_of(spec)
    options = machine.options + (",nvdimm=on" if _has_nvdimm(spec) else "")
    if not spec.numa:
        options += ",memory-backend=mem"
    if spec.iommu:
        options += ",kernel-irqchip=split"
    accel = "kvm"
    if accelerator.name != "kvm":
        accel = "tcg,thread=multi"
        options += f",{machine.emulated}" if machine.emulated else ""
    return ["-M", options, *machine.arguments, "-accel", accel]


def _cpus(spec: VmSpec, accelerator: Accelerator) -> list[str]:
    emulated = architecture(spec.arch).emulated_cpu
    model = spec.cpu_model or ("host" if accelerator.name == "kvm" else emulated)
    limit = spec.vcpu_limit
    topology = f"cpus={spec.vcpus},maxcpus={limit},sockets=1,cores={limit},threads=1"
    return ["-cpu", model, "-smp", topology]


def _sandbox(spec: VmSpec, features: QemuFeatures) -> list[str]:
    if not spec.sandbox_seccomp:
        return ["-sandbox", "off"] if features.sandbox else []
    return ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"]


def _user(spec: VmSpec, features: QemuFeatures) -> list[str]:
    """Let QEMU give up root once it has opened all it needs at boot."""
    if spec.user is None:
        return []
    user = ":".join(map(str, spec.user))
    return ["-run-with", f"user={user}"] if features.run_with_user else ["-runas", user]


def _listener(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off"]


def _monitor(features: QemuFeatures) -> list[str]:
    if features.monitor_object:
        return ["-object", "monitor-qmp,id=mon0,chardev=qmp"]
    return ["-mon", "chardev=qmp,mode=control"]


def _extra_monitor(spec: VmSpec, features: QemuFeatures, listeners: Listeners) -> list[str]:
    if listeners.extra_monitor is None:
        return []
    kind, _, pretty = spec.extra_monitor.partition("-")
    rest = ",pretty=on" if pretty else ""
    if features.monitor_object:
        monitor = ["-object", f"monitor-{kind},id=extra,chardev=extra-monitor{rest}"]
    else:
        mode = "readline" if kind == "hmp" else "control"
        monitor = ["-mon", f"chardev=extra-monitor,mode={mode}{rest}"]
    return [*_listener("extra-monitor", listeners.extra_monitor), *monitor]


def _console(listeners: Listeners) -> list[str]:
    if listeners.console is None:
        return []
    return [*_listener("console", listeners.console), "-serial", "chardev:console"]


def _ports(plan: Plan) -> list[str]:
    arguments: list[str] = []
    for number, (name, slot, function, shared) in enumerate(plan.places.ports, start=1):
        option = f"pcie-root-port,id={name},bus=pcie.0,chassis={number},slot={number}"
        option += f",addr={slot:02x}.{function:x}"
        if shared and function == 0:
            option += ",multifunction=on"
        arguments += ["-device", option]
    for number, (name, slot) in enumerate(plan.places.bridges, start=_BRIDGE_CHASSIS):
        option = f"pci-bridge,id={name},bus=pcie.0,addr={slot:02x},chassis_nr={number},shpc=off"
        arguments += ["-device", f"{option},{_BRIDGE_ROOM}"]
    return arguments


def _devices(plan: Plan, listeners: Listeners) -> list[str]:
    arguments: list[str] = []
    if plan.scsi_slot:
        arguments += ["-device", _controller("scsi", SCSI_ID, plan, plan.scsi_slot)]
    controller_made = False
    for placed in plan.placed.values():
        if isinstance(placed.handle.device, SerialDevice):
            if not controller_made:
                controller = _controller("serial", "vserial", plan, plan.controller_slot)
                arguments += ["-device", controller]
                controller_made = True
            fd = listeners.ports[placed.handle.id]
            arguments += _listener(f"{placed.recipe.name}-chr", fd)
        for step in placed.recipe.steps:
            arguments += step.options()
    return arguments


def _controller(kind: str, name: str, plan: Plan, slot: int) -> str:
    place = plan.cold_place(slot)
    option = key_values(virtio_driver(kind, plan.transport), id=name, **place)
    return f"{option},{IOMMU_OPTIONS}" if plan.iommu else option


def serial_ids(plan: Plan) -> list[str]:
    """Return the ids of the virtio-serial ports, the agent's among them."""
    return [
        device_id
        for device_id, placed in plan.placed.items()
        if isinstance(placed.handle.device, SerialDevice)
    ]


__all__ = ["AGENT_PORT_ID", "Listeners", "build", "check", "serial_ids"]
