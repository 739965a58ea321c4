"""The guest's NUMA nodes, as Kata's ``enable_numa`` and ``numa_mapping`` ask for them.

Each element of the mapping is a guest node and names the host's nodes its memory comes
from, in the form of Linux CPU lists; without a mapping each host node has its guest node.
CPUs and memory are shared out evenly.

Source: Kata's docs/how-to/how-to-use-numa-with-kata.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import ConfigError
from vmm.spec import MIB, NumaNode

if TYPE_CHECKING:
    from vmm.spec import VmSpec

SYSFS = Path("/sys/devices/system/node")
_KEY = "[hypervisor.qemu] numa_mapping"
_LIST = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
_HUGE_PAGE = 2 * MIB


def numa_nodes(mapping: tuple[str, ...], spec: VmSpec, sysfs: Path = SYSFS) -> tuple[NumaNode, ...]:
    """Return the nodes of a VM, which together have all its CPUs and its memory at boot.

    Args:
        mapping: for each guest node the host's nodes, such as ``0`` or ``0-1,3``.
        spec: the VM.
        sysfs: where the kernel describes the host's nodes.

    Raises:
        ConfigError: the host has no such node, or there are more nodes than CPUs.
    """
    host = _host_nodes(sysfs)
    nodes = [_parse(text) for text in mapping] or [(node,) for node in host]
    for text, chosen in zip(mapping, nodes, strict=False):
        if missing := sorted(set(chosen) - set(host)):
            raise ConfigError(f"{_KEY}: '{text}': this host has no NUMA node {missing[0]}")
    if len(nodes) > spec.vcpu_limit:
        raise ConfigError(
            f"{_KEY}: {len(nodes)} guest nodes need as many CPUs, and the VM has at most "
            f"{spec.vcpu_limit}: raise default_vcpus or default_maxvcpus"
        )
    unit = _HUGE_PAGE if spec.hugepages else MIB
    cpus = _shares(spec.vcpu_limit, len(nodes))
    memory = _shares(spec.memory_bytes // unit, len(nodes))
    return tuple(
        NumaNode(vcpus, pages * unit, chosen)
        for vcpus, pages, chosen in zip(cpus, memory, nodes, strict=True)
    )


def _host_nodes(sysfs: Path) -> tuple[int, ...]:
    try:
        return _parse((sysfs / "online").read_text().strip())
    except OSError as error:
        raise ConfigError(
            f"[hypervisor.qemu] enable_numa: {sysfs}: {error.strerror}: this host has no NUMA nodes"
        ) from error


def _parse(text: str) -> tuple[int, ...]:
    compact = text.replace(" ", "")
    if not _LIST.fullmatch(compact):
        raise ConfigError(f"{_KEY}: '{text}': accepted is a list of nodes such as '0-1,3'")
    found: dict[int, None] = {}
    for part in compact.split(","):
        first, _, last = part.partition("-")
        found |= dict.fromkeys(range(int(first), int(last or first) + 1))
    if not found:
        raise ConfigError(f"{_KEY}: '{text}' names no node")
    return tuple(found)


def _shares(total: int, count: int) -> list[int]:
    each, rest = divmod(total, count)
    return [each + (index < rest) for index in range(count)]
