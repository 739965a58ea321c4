"""Resource limits of a container in the VM, whose cgroups are pure v2.

Source: OCI runtime-spec config-linux.md; kernel cgroup-v2.rst; crun's conversion of v1
values, which refuses what v2 does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_MEMORY = ("limit", "reservation", "swap", "checkBeforeUpdate")
_CPU = ("shares", "quota", "period", "burst", "idle")
_BLOCK_IO = ("weight",)
_UNIFIED_CONTROLLERS = ("memory", "cpu", "pids")


def guest_resources(
    resources: Mapping[str, Any], *, hugepage_sizes: Collection[str] = ()
) -> dict[str, Any]:
    """Keep the limits that mean the same in the guest; device rules are not among them.

    CPU and NUMA node numbers, block device numbers and network classes are the
    host's; kernel memory, swappiness and real-time budgets do not exist in v2.

    Args:
        resources: ``linux.resources``, or the resources of an Update request.
        hugepage_sizes: page sizes the guest has a limit for; others are dropped,
            since writing a limit that is not there fails the container.
    """
    result: dict[str, Any] = {}
    for name, kept in (("memory", _MEMORY), ("cpu", _CPU), ("blockIO", _BLOCK_IO)):
        limits = {k: resources[name][k] for k in kept if k in resources.get(name, {})}
        if limits:
            result[name] = limits
    if "limit" in resources.get("pids", {}):
        result["pids"] = {"limit": resources["pids"]["limit"]}
    pages = [
        dict(limit)
        for limit in resources.get("hugepageLimits", ())
        if limit.get("pageSize") in hugepage_sizes
    ]
    if pages:
        result["hugepageLimits"] = pages
    unified = {
        key: value
        for key, value in resources.get("unified", {}).items()
        if key.partition(".")[0] in _UNIFIED_CONTROLLERS
    }
    if unified:
        result["unified"] = unified
    return result
