"""The figures of one pod: its shim, its VMM, its virtiofsd and its guest.

Nothing is counted but what is counted anyway; everything is read when somebody asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import trio

from shim.log import Log
from shim.monitoring.exposition import (
    ExpositionError,
    Family,
    gauge,
    merge,
    parse,
    renamed,
    render,
)
from shim.monitoring.histogram import histogram, together
from shim.monitoring.processes import (
    cost,
    link_family,
    process_families,
    serving,
    standard_families,
)
from shim.pod.sandbox import Sandbox
from shim.pod.stats import pod_stats
from shim.pod.vm import PodVm
from shim.ttrpc.durations import Durations
from shim.ttrpc.service import Service

GUEST_TIMEOUT_S = 5.0
GUEST_TEXT_MAX = 1 << 20  # characters
_GUEST_NAMES = ("kata_agent_", "kata_guest_")
_LIBRARY_NAMES = ("process_", "go_")  # Kata's agents have had these without a prefix
_NS = 1e9


@dataclass(frozen=True, slots=True)
class _Cost:
    """What the pod has cost up to a time, in seconds and bytes."""

    at: float
    host_seconds: float
    host_bytes: int
    guest_seconds: float
    guest_bytes: int


class PodMetrics:
    """Gathers the figures of a pod.

    Args:
        sandbox: the pod.
        services: those of the shim whose calls are told.
        log: the shim's log.
    """

    def __init__(self, sandbox: Sandbox, services: Iterable[Service], log: Log) -> None:
        self._sandbox = sandbox
        self._services = tuple(services)
        self._log = log
        self._last: _Cost | None = None

    async def text(self) -> str:
        """Return everything in Prometheus's text format.

        A guest that does not answer within :data:`GUEST_TIMEOUT_S` is left out.
        """
        vm = self._sandbox.vm
        pids = {"shim": os.getpid()}
        families: list[Family] = []
        if vm is not None and not vm.hypervisor.exited.is_set():
            pids["hypervisor"] = vm.pid
            pids |= {helper.name: helper.pid for helper in vm.helpers}
            families += await self._of_guest(vm)
            families += await self._of_vmm(vm)
            families += await self._overhead(list(pids.values()))
        families.append(self._own_calls())
        families += await trio.to_thread.run_sync(_of_processes, pids)
        return render(merge([families]))

    async def _of_guest(self, vm: PodVm) -> list[Family]:
        try:
            with trio.fail_after(GUEST_TIMEOUT_S):
                text = await vm.agent.metrics()
            calls = histogram(
                "kata_shim_agent_rpc_durations_histogram_milliseconds",
                "Calls to the guest's agent, by their request.",
                vm.agent.call_durations,
                "action",
            )
            return [calls] + await trio.to_thread.run_sync(_guest_families, text[:GUEST_TEXT_MAX])
        except ExpositionError as error:
            self._log.warning(f"the guest's metrics are malformed: {error}")
        except Exception as error:
            self._log.warning(f"no metrics from the guest: {error!r}")
        return []

    async def _of_vmm(self, vm: PodVm) -> list[Family]:
        """What the VMM itself counts; Firecracker alone does."""
        try:
            with trio.fail_after(GUEST_TIMEOUT_S):
                groups = await vm.hypervisor.own_counters()
        except Exception as error:
            self._log.warning(f"no metrics from the VMM: {error!r}")
            return []
        return [
            gauge(f"kata_firecracker_{group}", f"Firecracker's {group}.", values)
            for group, values in groups.items()
            if group.isidentifier()
        ]

    async def _overhead(self, pids: list[int]) -> list[Family]:
        """What the pod costs beyond its containers: memory now, CPU since the last time."""
        try:
            with trio.fail_after(GUEST_TIMEOUT_S):
                stats = (await pod_stats(self._sandbox.containers.values())).cgroup_stats
        except Exception as error:
            self._log.warning(f"no figures of the pod's containers: {error!r}")
            return []
        host_seconds, host_bytes = await trio.to_thread.run_sync(cost, pids)
        now = _Cost(
            time.monotonic(),
            host_seconds,
            host_bytes,
            stats.cpu_stats.cpu_usage.total_usage / _NS,
            stats.memory_stats.usage.usage,
        )
        families = [
            gauge(
                "kata_shim_pod_overhead_memory_in_bytes",
                "Memory of shim, VMM and helpers beyond that of the pod's containers.",
                now.host_bytes - now.guest_bytes,
            )
        ]
        last, self._last = self._last, now
        if last is not None and now.at > last.at:
            host = now.host_seconds - last.host_seconds
            guest = now.guest_seconds - last.guest_seconds
            families.append(
                gauge(
                    "kata_shim_pod_overhead_cpu",
                    "CPU of shim, VMM and helpers beyond that of the pod's containers, in "
                    "percent of a CPU, since the scrape before.",
                    (host - guest) / (now.at - last.at) * 100,
                )
            )
        return families

    def _own_calls(self) -> Family:
        calls: dict[str, list[Durations]] = {}
        for service in self._services:
            for method in service.methods.values():
                calls.setdefault(action(method.name), []).append(method.durations)
        return histogram(
            "kata_shim_rpc_durations_histogram_milliseconds",
            "Calls to the shim, by what they do.",
            {name: together(several) for name, several in calls.items()},
            "action",
        )


def action(method: str) -> str:
    """Kata's name of a call: ``resize_pty`` for ``ResizePty``."""
    words = method.replace("IO", "Io")
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")


def _of_processes(pids: Mapping[str, int]) -> list[Family]:
    shim = pids["shim"]
    families = process_families("kata_shim", "the shim", shim)
    families += standard_families("kata_shim", shim)
    if vmm := pids.get("hypervisor"):
        families += process_families("kata_hypervisor", "the hypervisor", vmm)
        about = "Links of the pod's network namespace."
        families.append(link_family("kata_hypervisor_netdev", about, vmm))
    if daemon := pids.get("virtiofsd"):
        families += process_families("kata_virtiofsd", "virtiofsd", serving(daemon))
    return families


def _guest_families(text: str) -> list[Family]:
    """What a guest may say of itself: nothing that passes for the host's.

    Raises:
        ExpositionError: it is malformed.
    """
    families = []
    for family in parse(text):
        if family.name.startswith(_LIBRARY_NAMES):
            family = renamed(family, f"kata_agent_{family.name}")
        if family.name.startswith(_GUEST_NAMES):
            families.append(family)
    return families
