"""QEMU's command line for a VM. Pure, and standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm import cmdline
from vmm.arch import architecture
from vmm.errors import InvalidConfig
from vmm.qemu.plan import AGENT_PORT_ID
from vmm.spec import MIB, SerialDevice

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmm.qemu.accel import Accelerator
    from vmm.qemu.plan import Plan
    from vmm.qemu.probe import QemuFeatures
    from vmm.spec import VmSpec

MEMORY_BLOCK = 128 * MIB  # what the guest kernel adds at a time on x86
DIMM_SLOTS = 16
VIRTIO_MEM_ID = "vmem0"
_MAX_ARGUMENT = 2047  # bytes of kernel command line on x86


@dataclass(frozen=True)
class Listeners:
    """Numbers of the listening sockets QEMU inherits.

    Args:
        qmp: control socket.
        console: guest console, or None.
        ports: virtio-serial ports by device id.
    """

    qmp: int
    console: int | None = None
    ports: Mapping[str, int] = field(default_factory=dict)

    def all(self) -> tuple[int, ...]:
        """Return every descriptor."""
        console = () if self.console is None else (self.console,)
        return (self.qmp, *console, *self.ports.values())


def hot_memory_bytes(spec: VmSpec) -> int:
    """Return the size of the hot-pluggable memory region, whole guest memory blocks."""
    return -(-(spec.memory_limit - spec.memory_bytes) // MEMORY_BLOCK) * MEMORY_BLOCK


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
    return [
        str(binary),
        *("-name", f"guest={spec.name.replace(',', ',,')},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S"),
        *_machine(spec, accelerator),
        *_cpus(spec, accelerator),
        *_memory(spec),
        *_sandbox(spec, features),
        *(["-incoming", "defer"] if spec.restored else []),
        *_listener("qmp", listeners.qmp),
        *_monitor(features),
        *_console(listeners),
        *_kernel(spec, accelerator, tsc_khz),
        *_ports(plan),
        *_devices(plan, listeners),
        *_virtio_mem(spec, plan),
        *spec.extra_args,
    ]


def check(spec: VmSpec, features: QemuFeatures) -> None:
    """Raise unless the spec can be built.

    Raises:
        InvalidConfig: it names what is missing or wrong.
    """
    arch = architecture(spec.arch)
    if spec.machine not in arch.machines:
        raise InvalidConfig(
            f"machine {spec.machine}: known for {arch.name} are {', '.join(arch.machines)}"
        )
    if spec.machine not in features.machines:
        raise InvalidConfig(f"QEMU {features.version_text} has no machine type {spec.machine}")
    for what, path in (("kernel", spec.kernel), ("initrd", spec.initrd)):
        if path is not None and not path.is_file():
            raise InvalidConfig(f"{what}: no file at {path}")
    if spec.vcpus < 1 or spec.memory_bytes < MIB or spec.memory_bytes % MIB:
        raise InvalidConfig("a VM needs at least one CPU and whole MiB of memory")
    if spec.memory_file is not None and spec.restored and spec.needs_shared_memory:
        raise InvalidConfig("a VM loaded from a memory file can't have vhost-user devices")
    if spec.sandbox_seccomp and not features.sandbox:
        raise InvalidConfig(f"QEMU {features.version_text} is built without seccomp")
    if spec.hugepages:
        raise InvalidConfig("hugepages: QEMU's memory is not backed by them yet")
    grows = spec.vcpu_limit > spec.vcpus or spec.memory_limit > spec.memory_bytes
    if spec.machine != "q35" and grows:
        raise InvalidConfig(f"{spec.machine} can't grow: max_vcpus and max_memory_bytes must be 0")


def _machine(spec: VmSpec, accelerator: Accelerator) -> list[str]:
    if spec.machine == "microvm":
        # Without qboot and with option ROMs off the kernel is never started.
        options = "microvm,memory-backend=mem,x-option-roms=off,rtc=on,isa-serial=on"
        machine = ["-M", options, "-bios", "qboot.rom"]
        machine += ["-global", "virtio-mmio.force-legacy=false"]
    elif spec.machine == "virt":
        machine = ["-M", "virt,memory-backend=mem,gic-version=max"]
    else:
        machine = ["-M", "q35,memory-backend=mem,vmport=off,smbus=off,sata=off,usb=off"]
    accel = "kvm" if accelerator.name == "kvm" else "tcg,thread=multi"
    return [*machine, "-accel", accel]


def _cpus(spec: VmSpec, accelerator: Accelerator) -> list[str]:
    emulated = architecture(spec.arch).emulated_cpu
    model = spec.cpu_model or ("host" if accelerator.name == "kvm" else emulated)
    limit = spec.vcpu_limit
    topology = f"cpus={spec.vcpus},maxcpus={limit},sockets=1,cores={limit},threads=1"
    return ["-cpu", model, "-smp", topology]


def _memory(spec: VmSpec) -> list[str]:
    size = f"size={spec.memory_bytes // MIB}M"
    if hot := hot_memory_bytes(spec):
        # Alignment of each DIMM may cost up to a GiB of address space.
        spare = DIMM_SLOTS << 30 if spec.memory_hotplug == "dimm" else 0
        maxmem = (spec.memory_bytes + hot + spare) // MIB
        size += f",slots={DIMM_SLOTS},maxmem={maxmem}M"
    memory = _memory_object("mem", spec.memory_bytes, spec)
    if spec.memory_file is not None:
        share = "off" if spec.restored else "on"
        path = str(spec.memory_file).replace(",", ",,")
        memory = f"memory-backend-file,id=mem,size={spec.memory_bytes // MIB}M"
        memory += f",share={share},mem-path={path}"
    return ["-m", size, "-object", memory]


def memory_backend_type(spec: VmSpec) -> str:
    """Return the QOM type of the objects that hold the guest's memory."""
    return "memory-backend-memfd" if spec.needs_shared_memory else "memory-backend-ram"


def _memory_object(name: str, size: int, spec: VmSpec, *, reserve: bool = True) -> str:
    share = "on" if spec.needs_shared_memory else "off"
    text = f"{memory_backend_type(spec)},id={name},size={size // MIB}M,share={share}"
    return text if reserve else f"{text},reserve=off"


def _virtio_mem(spec: VmSpec, plan: Plan) -> list[str]:
    hot = hot_memory_bytes(spec)
    if not hot or spec.memory_hotplug != "virtio-mem":
        return []
    slot = plan.take_slot(VIRTIO_MEM_ID)
    device = f"virtio-mem-pci,id={VIRTIO_MEM_ID},memdev=hotmem,requested-size=0"
    return [
        *("-object", _memory_object("hotmem", hot, spec, reserve=False)),
        *("-device", f"{device},bus=pcie.0,addr={slot:02x}"),
    ]


def _sandbox(spec: VmSpec, features: QemuFeatures) -> list[str]:
    if not spec.sandbox_seccomp:
        return ["-sandbox", "off"] if features.sandbox else []
    return ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"]


def _listener(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off"]


def _monitor(features: QemuFeatures) -> list[str]:
    if features.monitor_object:
        return ["-object", "monitor-qmp,id=mon0,chardev=qmp"]
    return ["-mon", "chardev=qmp,mode=control"]


def _console(listeners: Listeners) -> list[str]:
    if listeners.console is None:
        return []
    return [*_listener("console", listeners.console), "-serial", "chardev:console"]


def _kernel(spec: VmSpec, accelerator: Accelerator, tsc_khz: int) -> list[str]:
    line = kernel_cmdline(spec, accelerator, tsc_khz)
    if len(line.encode()) > _MAX_ARGUMENT:
        raise InvalidConfig(f"the kernel command line is over {_MAX_ARGUMENT} bytes: {line}")
    initrd = [] if spec.initrd is None else ["-initrd", str(spec.initrd)]
    return ["-kernel", str(spec.kernel), *initrd, "-append", line]


def kernel_cmdline(spec: VmSpec, accelerator: Accelerator, tsc_khz: int) -> str:
    """Return the caller's kernel arguments and those the machine needs besides."""
    # A reset ends the VM, so a panicked or rebooting guest must really reset.
    wanted = {"panic": "-1", "reboot": "t"}
    if accelerator.name == "tcg":
        # Self-tests of every cipher take a third of a second under emulation.
        wanted["cryptomgr.notests"] = ""
        if tsc_khz:
            wanted["tsc_early_khz"] = str(tsc_khz)
    return cmdline.merge(spec, wanted)


def _ports(plan: Plan) -> list[str]:
    arguments: list[str] = []
    for number, port in enumerate(plan.ports, start=1):
        option = f"pcie-root-port,id={port.name},bus=pcie.0,chassis={number},slot={number}"
        option += f",addr={port.slot:02x}.{port.function:x}"
        if port.multifunction and port.function == 0:
            option += ",multifunction=on"
        arguments += ["-device", option]
    return arguments


def _devices(plan: Plan, listeners: Listeners) -> list[str]:
    arguments: list[str] = []
    controller_made = False
    for placed in plan.placed.values():
        if isinstance(placed.handle.device, SerialDevice):
            if not controller_made:
                arguments += ["-device", _serial_controller(plan)]
                controller_made = True
            fd = listeners.ports[placed.handle.id]
            arguments += _listener(f"{placed.recipe.name}-chr", fd)
        for step in placed.recipe.steps:
            arguments += step.options()
    return arguments


def _serial_controller(plan: Plan) -> str:
    if plan.pci:
        return f"virtio-serial-pci,id=vserial,bus=pcie.0,addr={plan.controller_slot:02x}"
    return "virtio-serial-device,id=vserial"


def serial_ids(plan: Plan) -> list[str]:
    """Return the ids of the virtio-serial ports, the agent's among them."""
    return [
        device_id
        for device_id, placed in plan.placed.items()
        if isinstance(placed.handle.device, SerialDevice)
    ]


__all__ = [
    "AGENT_PORT_ID",
    "Listeners",
    "build",
    "check",
    "hot_memory_bytes",
    "kernel_cmdline",
    "memory_backend_type",
    "serial_ids",
]
