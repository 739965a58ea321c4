"""The size of a pod's VM, from what its containers may use. Pure.

The rule, each resource alone: the VM has the larger of the configured default and the
sum over its containers, never more than the configured maximum. A container's share of
the sum is its limit; for CPUs without a quota it is what its shares ask for, and without
those the size of its CPU set. To the memory limits comes what the guest's kernel needs,
so that a container can reach its limit.

Source: OCI runtime-spec config-linux.md "Control groups"; containerd's CRI annotations
``io.kubernetes.cri.sandbox-*``; Kubernetes' 1024 shares for one CPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shim.errors import InvalidArgument

if TYPE_CHECKING:
    from shim.config.model import Config

MIB = 1 << 20
SHARES_PER_CPU = 1024
DEFAULT_PERIOD_US = 100_000
"""The kernel's period of a CPU quota, for one given without."""

_LEAST_SHARES = 2  # the kernel's minimum, which stands for "asks for nothing"
_UNLIMITED = 1 << 60  # a "limit" no host has, such as the kernel's own 1 << 63
_MEMORY_STEP = 2 * MIB
# The guest kernel keeps 64 bytes for each page of 4 KiB.
_PAGES_PER_MAP_PAGE = 64
_SANDBOX_PREFIX = "io.kubernetes.cri.sandbox-"
_ROLE = "io.kubernetes.cri.container-type"


@dataclass(frozen=True, slots=True)
class Demand:
    """What somebody may use; nothing said about a resource is 0.

    Args:
        cpus: CPUs, fractions too.
        cpu_set: host CPUs it is bound to, when nothing else tells how many it may use.
        memory_bytes: memory, huge pages included.
    """

    cpus: float = 0.0
    cpu_set: frozenset[int] = frozenset()
    memory_bytes: int = 0

    def __add__(self, other: Demand) -> Demand:
        """Both together; CPUs of a set count once."""
        return Demand(
            self.cpus + other.cpus,
            self.cpu_set | other.cpu_set,
            self.memory_bytes + other.memory_bytes,
        )


@dataclass(frozen=True, slots=True)
class Size:
    """A VM's size."""

    vcpus: int
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.vcpus} vCPUs, {self.memory_bytes // MIB} MiB"


@dataclass(frozen=True, slots=True)
class SizeRule:
    """The configured part of the rule.

    Args:
        default_vcpus: vCPUs of a VM whose pod asks for none, fractions too.
        default_memory: bytes of memory of a VM whose pod asks for none.
        overhead_memory: bytes the guest needs on top of what containers may use.
        max_vcpus: most vCPUs.
        max_memory: most bytes of memory.
    """

    default_vcpus: float
    default_memory: int
    overhead_memory: int
    max_vcpus: int
    max_memory: int

    def size(self, demand: Demand) -> Size:
        """Apply the rule."""
        wanted = self._wanted(demand)
        return Size(min(wanted.vcpus, self.max_vcpus), min(wanted.memory_bytes, self.max_memory))

    def shortfall(self, demand: Demand) -> str:
        """Say what the maxima cut off, "" when nothing."""
        wanted, size = self._wanted(demand), self.size(demand)
        cut = []
        if wanted.vcpus > size.vcpus:
            cut.append(f"{wanted.vcpus} vCPUs (default_maxvcpus allows {size.vcpus})")
        if wanted.memory_bytes > size.memory_bytes:
            allowed = f"default_maxmemory allows {size.memory_bytes // MIB}"
            cut.append(f"{wanted.memory_bytes // MIB} MiB ({allowed})")
        return f"the pod asks for {' and '.join(cut)}" if cut else ""

    def explain(self, demand: Demand) -> str:
        """Say how the size comes about, for the log."""
        cpus = f"{_cpus(demand):g} CPUs" if _cpus(demand) else "no CPUs"
        memory = f"{demand.memory_bytes // MIB} MiB" if demand.memory_bytes else "no memory"
        return (
            f"{self.size(demand)}: the pod asks for {cpus} and {memory}, the defaults are "
            f"{self.default_vcpus:g} vCPUs and {self.default_memory // MIB} MiB"
        )

    def _wanted(self, demand: Demand) -> Size:
        # Rounded first: the sum of a tenth and two tenths is a little over three.
        cpus = round(max(self.default_vcpus, _cpus(demand)), 3)
        memory = self.default_memory
        if demand.memory_bytes:
            needed = demand.memory_bytes + self.overhead_memory
            needed += needed // (_PAGES_PER_MAP_PAGE - 1)
            memory = max(memory, -(-needed // _MEMORY_STEP) * _MEMORY_STEP)
        return Size(max(1, math.ceil(cpus)), memory)


def size_rule(
    config: Config, *, host_cpus: int | None = None, host_memory: int | None = None
) -> SizeRule:
    """Return the rule of a configuration on this host.

    Args:
        config: the effective configuration.
        host_cpus: number of CPUs; None for this host's.
        host_memory: bytes of memory; None for this host's.
    """
    vm = config.hypervisor
    cpus = host_cpus or os.cpu_count() or 1
    memory = host_memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return SizeRule(
        default_vcpus=vm.default_vcpus if vm.default_vcpus > 0 else vm.boot_vcpus(cpus),
        default_memory=vm.default_memory * MIB,
        overhead_memory=vm.overhead_memory * MIB,
        max_vcpus=vm.max_vcpus(cpus),
        max_memory=vm.max_memory(memory // MIB) * MIB,
    )


def boot_demand(spec: Mapping[str, Any]) -> Demand:
    """What is known at the VM's start.

    For a pod that is what Kubernetes says of all its containers, for a container
    without a pod its own limits.

    Args:
        spec: OCI spec of the first container.

    Raises:
        InvalidArgument: an annotation is no number.
    """
    annotations = spec.get("annotations", {})
    if not is_sandbox(spec):
        return container_demand(spec.get("linux", {}).get("resources", {}))
    cpu = {
        name: _number(annotations, f"{_SANDBOX_PREFIX}cpu-{name}")
        for name in ("quota", "period", "shares")
    }
    memory = {"limit": _number(annotations, f"{_SANDBOX_PREFIX}memory")}
    return container_demand({"cpu": cpu, "memory": memory})


def is_sandbox(spec: Mapping[str, Any]) -> bool:
    """Whether a container only stands for its pod."""
    return bool(spec.get("annotations", {}).get(_ROLE) == "sandbox")


def counted_resources(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The resources by which a container counts: its own, and none for a pod's first one.

    That one only stands for the pod; what CRI gives it is not what it runs with.
    """
    if is_sandbox(spec):
        return {}
    resources: Mapping[str, Any] = spec.get("linux", {}).get("resources", {})
    return resources


def container_demand(resources: Mapping[str, Any]) -> Demand:
    """What a container may use.

    Args:
        resources: OCI ``linux.resources``.
    """
    cpu = resources.get("cpu", {})
    unified = resources.get("unified", {})
    quota, period = cpu.get("quota", 0), cpu.get("period", 0) or DEFAULT_PERIOD_US
    shares = cpu.get("shares", 0)
    cpus, cpu_set = 0.0, frozenset[int]()
    if (limit := _cpu_max(unified.get("cpu.max", ""))) > 0:
        cpus = limit
    elif quota > 0:
        cpus = quota / period
    elif shares > _LEAST_SHARES:
        cpus = shares / SHARES_PER_CPU
    elif not shares:
        cpu_set = parse_cpu_list(cpu.get("cpus", ""))
    memory = resources.get("memory", {}).get("limit", 0)
    if "memory.max" in unified:
        memory = int(unified["memory.max"]) if unified["memory.max"].isdecimal() else 0
    memory = memory if 0 < memory < _UNLIMITED else 0
    pages = sum(max(0, page.get("limit", 0)) for page in resources.get("hugepageLimits", ()))
    return Demand(cpus, cpu_set, memory + (pages if pages < _UNLIMITED else 0))


def total(demands: Iterable[Demand]) -> Demand:
    """Add demands up."""
    return sum(demands, Demand())


def merged(resources: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply an Update request to a container's resources: what it does not name stays."""
    result = {**resources, **changes}
    for section in ("cpu", "memory"):
        if section in resources and section in changes:
            result[section] = {**resources[section], **changes[section]}
    return result


def guest_cpu_list(
    resources: Mapping[str, Any], everyone: Iterable[Mapping[str, Any]], size: Size, limit: int
) -> str:
    """Choose the guest's CPUs that stand for those a container is bound to on the host.

    A container bound to two CPUs is bound to two of the guest's, and containers bound to
    different ones to different ones, as far as the VM has so many.

    Args:
        resources: the container's OCI ``linux.resources``.
        everyone: those of all containers of the pod.
        size: the VM's size.
        limit: most vCPUs it may ever have.

    Returns:
        Empty when it names no CPUs.
    """
    own = cpu_set(resources)
    if not own:
        return ""
    if len(own) >= size.vcpus:
        return f"0-{limit - 1}"  # those to come too
    bound = (cpus for cpus in map(cpu_set, everyone) if len(cpus) < size.vcpus)
    known = sorted(own.union(*bound))
    guest = sorted({known.index(cpu) % size.vcpus for cpu in own})
    return ",".join(map(str, guest))


def cpu_set(resources: Mapping[str, Any]) -> frozenset[int]:
    """The host's CPUs a container is bound to, none when it may run on any."""
    return parse_cpu_list(resources.get("cpu", {}).get("cpus", ""))


def parse_cpu_list(text: str) -> frozenset[int]:
    """Read a list such as ``0-3,8``.

    Raises:
        InvalidArgument: it is no such list.
    """
    found: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise InvalidArgument(f"CPU list {text!r}: {part!r} is no range") from None
        if not 0 <= low <= high < 1 << 16:
            raise InvalidArgument(f"CPU list {text!r}: {part!r} is no range")
        found.update(range(low, high + 1))
    return frozenset(found)


def _cpus(demand: Demand) -> float:
    return demand.cpus + len(demand.cpu_set)


def _cpu_max(text: str) -> float:
    quota, _, period = text.partition(" ")
    if not quota.isdecimal():
        return 0.0
    return int(quota) / (int(period) if period.isdecimal() and int(period) else DEFAULT_PERIOD_US)


def _number(annotations: Mapping[str, str], key: str) -> int:
    try:
        return int(annotations.get(key, "0"))
    except ValueError:
        raise InvalidArgument(f"annotation {key}: {annotations[key]!r} is no number") from None
