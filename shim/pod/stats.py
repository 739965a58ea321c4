"""A pod's counters: the sum of its containers'."""

from __future__ import annotations

from collections.abc import Iterable

from protos.kata import agent_pb2
from shim.errors import NotFound
from shim.pod.container import Container
from shim.pod.state import ProcessState

_LIVE = (ProcessState.CREATED, ProcessState.RUNNING, ProcessState.PAUSED)


async def pod_stats(containers: Iterable[Container]) -> agent_pb2.StatsContainerResponse:
    """Read the counters of a pod's containers and add them up.

    The network is the pod's, so it counts once.
    """
    total = agent_pb2.StatsContainerResponse()
    for container in list(containers):
        if container.init.state in _LIVE:
            try:
                stats = await container.stats()
            except NotFound:  # it ended meanwhile, or is the pause container
                continue
            _add(total.cgroup_stats, stats.cgroup_stats)
            del total.network_stats[:]
            total.network_stats.extend(stats.network_stats)
    return total


def _add(total: agent_pb2.CgroupStats, one: agent_pb2.CgroupStats) -> None:
    cpu, more = total.cpu_stats.cpu_usage, one.cpu_stats.cpu_usage
    cpu.total_usage += more.total_usage
    cpu.usage_in_kernelmode += more.usage_in_kernelmode
    cpu.usage_in_usermode += more.usage_in_usermode
    total.memory_stats.usage.usage += one.memory_stats.usage.usage
    for key, value in one.memory_stats.stats.items():
        total.memory_stats.stats[key] += value
    total.pids_stats.current += one.pids_stats.current
