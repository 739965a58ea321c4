"""The VMMs of this host, what each can do, and why not what it can't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.config.hypervisors import CloudHypervisor, Firecracker, Qemu
from vmm.arch import architecture
from vmm.errors import InvalidConfig
from vmm.hypervisor import Capabilities
from vmm.spec import MIB, BalloonDevice, FsDevice, PanicDevice, VmSpec

if TYPE_CHECKING:
    from shim.config.model import Config

# Facts that are no ability, or that the table's head says.
_LEFT_OUT = {"vmm", "why_not", "mem_granule", "mem_max", "event_stream", "reset_semantics"}
_INVERSE = {"guest_rescan_needed", "guest_remove_first"}
_NOWHERE = Path("/nonexistent")


@dataclass(frozen=True)
class Vmm:
    """One VMM that was looked for.

    Args:
        name: its kind.
        path: its program; None when there is none.
        capabilities: what it can do for a VM that asks for all it has.
        problem: why it can't be used.
    """

    name: str
    path: Path | None
    capabilities: Capabilities | None
    problem: str = ""


def find(config: Config) -> list[Vmm]:
    """Return the VMMs of this host; one that is not there is in the list with the reason.

    Args:
        config: where a program is, unless it is on the PATH.
    """
    probes: dict[str, Callable[[], tuple[Path, Capabilities]]] = {
        "QEMU": lambda: _qemu(config),
        "Firecracker": lambda: _firecracker(config, pci=False),
        "Firecracker with PCI": lambda: _firecracker(config, pci=True),
        "Cloud Hypervisor": lambda: _cloud_hypervisor(config),
    }
    found = []
    for name, probe in probes.items():
        try:
            path, capabilities = probe()
        except InvalidConfig as error:
            found.append(Vmm(name, None, None, str(error)))
        else:
            found.append(Vmm(name, path, capabilities))
    return found


def _qemu(config: Config) -> tuple[Path, Capabilities]:
    from vmm.qemu import accel, capabilities, probe
    from vmm.qemu.machines import find_machine

    vm = config.hypervisor
    arch = architecture(config.katapy.guest_arch)
    binary = probe.find_binary(arch, (isinstance(vm, Qemu) and vm.path) or "")
    features = probe.probe(binary)
    grows = find_machine(arch, arch.machines[0]).grows
    asks_for_all = VmSpec(
        kernel=_NOWHERE,
        runtime_dir=_NOWHERE,
        arch=arch.name,
        machine=arch.machines[0],
        max_vcpus=2 if grows else 0,
        max_memory_bytes=512 * MIB if grows else 0,
        hugepages=True,
        user=(1, 1),
        devices=(BalloonDevice(), PanicDevice(), FsDevice("fs", "fs", _NOWHERE)),
    )
    chosen = accel.choose("auto", arch)
    return binary, capabilities.capabilities(asks_for_all, features, chosen)


def _firecracker(config: Config, *, pci: bool) -> tuple[Path, Capabilities]:
    from vmm.firecracker.launch import probe

    vm = config.hypervisor
    binary, features = probe((isinstance(vm, Firecracker) and vm.path) or "", pci=pci)
    return binary, features.capabilities()


def _cloud_hypervisor(config: Config) -> tuple[Path, Capabilities]:
    from vmm.cloud_hypervisor.launch import probe

    vm = config.hypervisor
    binary, features = probe((isinstance(vm, CloudHypervisor) and vm.path) or "")
    return binary, features.capabilities()


def as_json(vmms: list[Vmm]) -> list[dict[str, Any]]:
    """Return the matrix as JSON would hold it."""
    return [
        {
            "name": vmm.name,
            "path": str(vmm.path or ""),
            "version": vmm.capabilities.vmm if vmm.capabilities else "",
            "problem": vmm.problem,
            "capabilities": {
                name: getattr(vmm.capabilities, name) for name in _names() if vmm.capabilities
            },
            "why_not": dict(vmm.capabilities.why_not) if vmm.capabilities else {},
        }
        for vmm in vmms
    ]


def as_text(vmms: list[Vmm]) -> str:
    """Return the matrix as an aligned table, with what is off and why below it."""
    return "\n".join(_lines(vmms))


def _lines(vmms: list[Vmm]) -> Iterator[str]:
    there = [(vmm, vmm.capabilities) for vmm in vmms if vmm.capabilities is not None]
    for vmm in vmms:
        if vmm.capabilities is None:
            yield f"{vmm.name}: {vmm.problem}"
        else:
            yield f"{vmm.name}: {vmm.path}, {vmm.capabilities.vmm}"
    if not there:
        return
    yield ""
    heads = [_head(vmm, capabilities) for vmm, capabilities in there]
    names = list(_names())
    width = max(map(len, names))
    yield f"{'':<{width}}  " + "  ".join(heads)
    notes: list[str] = []
    for name in names:
        cells = []
        for head, (vmm, capabilities) in zip(heads, there, strict=True):
            text = _cell(getattr(capabilities, name))
            reason = capabilities.why_not.get(name)
            if reason and not capabilities.has(name) and name not in _INVERSE:
                note = f"{vmm.name}: {reason}"
                if note not in notes:
                    notes.append(note)
                text += f" [{notes.index(note) + 1}]"
            cells.append(f"{text:<{len(head)}}")
        yield f"{name:<{width}}  " + "  ".join(cells).rstrip()
    yield ""
    for number, note in enumerate(notes, start=1):
        yield f"[{number}] {note}"


def _head(vmm: Vmm, capabilities: Capabilities) -> str:
    return f"{capabilities.vmm}, PCI" if vmm.name.endswith("PCI") else capabilities.vmm


def _names() -> Iterator[str]:
    return (field.name for field in fields(Capabilities) if field.name not in _LEFT_OUT)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "no" if value == "none" else str(value)
