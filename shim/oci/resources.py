"""Resource limits of a container in the VM, whose cgroups are pure v2.

Source: OCI runtime-spec config-linux.md; kernel cgroup-v2.rst; crun's conversion of v1
values, which refuses what v2 does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_MEMORY = ("limit", "reservation", "swap", "checkBeforeUpdate")
_CPU = ("shares", "quota", "period", "burst", "idle")
_BLOCK_IO = ("weight",)
_UNIFIED_CONTROLLERS = ("memory", "cpu", "pids")


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """Limits that a guest's kernel may lack; asking for one that is not there is an error.

    Args:
        hugepage_sizes: page sizes (``2MB``) with a limit of their own.
        io_weight: whether disk time is shared by weights.
    """

    hugepage_sizes: Collection[str] = ()
    io_weight: bool = False

    @classmethod
    def of_features(cls, features: Collection[str]) -> GuestLimits:
        """Read them from what the agent's extension announces."""
        prefix = "hugetlb-"
        sizes = tuple(f.removeprefix(prefix) for f in features if f.startswith(prefix))
        return cls(sizes, "io-weight" in features)


def guest_resources(
    resources: Mapping[str, Any], *, limits: GuestLimits | None = None, cpus: str = ""
) -> dict[str, Any]:
    """Keep the limits that mean the same in the guest; device rules are not among them.

    CPU and NUMA node numbers, block device numbers and network classes are the
    host's; kernel memory, swappiness and real-time budgets do not exist in v2.

    Args:
        resources: ``linux.resources``, or the resources of an Update request.
        limits: what this guest has; None for the least.
        cpus: the guest's CPUs that stand for the host's in ``cpu.cpus``, empty for any.
    """
    limits = limits or GuestLimits()
    result: dict[str, Any] = {}
    for name, kept in (("memory", _MEMORY), ("cpu", _CPU), ("blockIO", _BLOCK_IO)):
        values = {k: resources[name][k] for k in kept if k in resources.get(name, {})}
        if values and (name != "blockIO" or limits.io_weight):
            result[name] = values
    if cpus:
        result.setdefault("cpu", {})["cpus"] = cpus
    if "limit" in resources.get("pids", {}):
        result["pids"] = {"limit": resources["pids"]["limit"]}
    pages = [
        dict(limit)
        for limit in resources.get("hugepageLimits", ())
        if limit.get("pageSize") in limits.hugepage_sizes
    ]
    if pages:
        result["hugepageLimits"] = pages
    unified = {
        key: value
        for key, value in resources.get("unified", {}).items()
        if key.partition(".")[0] in _UNIFIED_CONTROLLERS
        or (key == "io.weight" and limits.io_weight and ":" not in value)
        or (key.startswith("hugetlb.") and key.split(".")[1] in limits.hugepage_sizes)
    }
    if unified:
        result["unified"] = unified
    return result
