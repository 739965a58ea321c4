"""A container's counters, from the agent's form to the two forms that containerd knows.

Pure. The guest's cgroups may be version 1 or 2 whatever the host's are: the agent hands
over the keys of ``memory.stat`` as it read them, and they are told apart here. What the
agent's message has no room for (pressure, memory events) stays unset.
Source: agent.proto of Kata; metrics.proto of containerd/cgroups, both versions; Linux
Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from protos.containerd import cgroups_v1_pb2, cgroups_v2_pb2

if TYPE_CHECKING:
    from protos.kata import agent_pb2

_NO_LIMIT = (1 << 64) - 1
_NS_PER_US = 1000

# Field of the version 1 message, key in version 1's memory.stat, key in version 2's.
_MEMORY = (
    ("cache", "cache", "file"),
    ("rss", "rss", "anon"),
    ("rss_huge", "rss_huge", "anon_thp"),
    ("mapped_file", "mapped_file", "file_mapped"),
    ("dirty", "dirty", "file_dirty"),
    ("writeback", "writeback", "file_writeback"),
    ("pg_pg_in", "pgpgin", ""),
    ("pg_pg_out", "pgpgout", ""),
    ("pg_fault", "pgfault", "pgfault"),
    ("pg_maj_fault", "pgmajfault", "pgmajfault"),
    ("inactive_anon", "inactive_anon", "inactive_anon"),
    ("active_anon", "active_anon", "active_anon"),
    ("inactive_file", "inactive_file", "inactive_file"),
    ("active_file", "active_file", "active_file"),
    ("unevictable", "unevictable", "unevictable"),
)
# Newer kernels count these apart for anonymous and file pages.
_SUMS = ("workingset_refault", "workingset_activate")
# Not from memory.stat.
_USAGE_FIELDS = frozenset(
    {"usage", "usage_limit", "swap_usage", "swap_limit", "max_usage", "swap_max_usage", "psi"}
)
_IO_FIELDS = {
    "io_service_bytes_recursive": {"read": "rbytes", "write": "wbytes"},
    "io_serviced_recursive": {"read": "rios", "write": "wios"},
}
# The same lists in the agent's message and in the version 1 one.
_BLKIO = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queued_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)


def cgroup_v2(stats: agent_pb2.StatsContainerResponse) -> cgroups_v2_pb2.Metrics:
    """Return ``io.containerd.cgroups.v2.Metrics``, for hosts with cgroup v2."""
    cgroup = stats.cgroup_stats
    metrics = cgroups_v2_pb2.Metrics()
    metrics.pids.current = cgroup.pids_stats.current
    metrics.pids.limit = cgroup.pids_stats.limit
    usage, throttling = cgroup.cpu_stats.cpu_usage, cgroup.cpu_stats.throttling_data
    metrics.cpu.usage_usec = usage.total_usage // _NS_PER_US
    metrics.cpu.user_usec = usage.usage_in_usermode // _NS_PER_US
    metrics.cpu.system_usec = usage.usage_in_kernelmode // _NS_PER_US
    metrics.cpu.nr_periods = throttling.periods
    metrics.cpu.nr_throttled = throttling.throttled_periods
    metrics.cpu.throttled_usec = throttling.throttled_time // _NS_PER_US
    _memory_v2(cgroup.memory_stats, metrics.memory)
    _io_v2(cgroup.blkio_stats, metrics.io)
    for size, huge in sorted(cgroup.hugetlb_stats.items()):
        # Its "max" is the limit, which the agent does not report; max_usage is the peak.
        metrics.hugetlb.add(current=huge.usage, pagesize=size, failcnt=huge.failcnt)
    for link in stats.network_stats:
        _copy_link(link, metrics.network.add())
    return metrics


def cgroup_v1(stats: agent_pb2.StatsContainerResponse) -> cgroups_v1_pb2.Metrics:
    """Return ``io.containerd.cgroups.v1.Metrics``, for hosts with cgroup v1."""
    cgroup = stats.cgroup_stats
    metrics = cgroups_v1_pb2.Metrics()
    metrics.pids.current = cgroup.pids_stats.current
    metrics.pids.limit = cgroup.pids_stats.limit
    usage, throttling = cgroup.cpu_stats.cpu_usage, cgroup.cpu_stats.throttling_data
    metrics.cpu.usage.total = usage.total_usage
    metrics.cpu.usage.kernel = usage.usage_in_kernelmode
    metrics.cpu.usage.user = usage.usage_in_usermode
    metrics.cpu.usage.per_cpu.extend(usage.percpu_usage)
    metrics.cpu.throttling.periods = throttling.periods
    metrics.cpu.throttling.throttled_periods = throttling.throttled_periods
    metrics.cpu.throttling.throttled_time = throttling.throttled_time
    _memory_v1(cgroup.memory_stats, metrics.memory)
    for name in _BLKIO:
        entries = getattr(metrics.blkio, name)
        for entry in getattr(cgroup.blkio_stats, name):
            entries.add(op=entry.op, major=entry.major, minor=entry.minor, value=entry.value)
    for size, huge in sorted(cgroup.hugetlb_stats.items()):
        metrics.hugetlb.add(
            usage=huge.usage, max=huge.max_usage, failcnt=huge.failcnt, pagesize=size
        )
    for link in stats.network_stats:
        _copy_link(link, metrics.network.add())
    return metrics


def _memory_v2(source: agent_pb2.MemoryStats, target: cgroups_v2_pb2.MemoryStat) -> None:
    raw = source.stats
    if _is_v2(raw):
        for field in target.DESCRIPTOR.fields:
            if field.name in raw and field.name not in _USAGE_FIELDS:
                setattr(target, field.name, raw[field.name])
        for name in _SUMS:
            if name not in raw:
                setattr(target, name, _get(raw, f"{name}_anon") + _get(raw, f"{name}_file"))
        target.swap_usage = source.swap_usage.usage
        target.swap_limit = source.swap_usage.limit
        target.swap_max_usage = source.swap_usage.max_usage
    else:
        for _, key, name in _MEMORY:
            if name:
                setattr(target, name, _hierarchical(raw, key))
        # Version 1 counts memory and swap together.
        usage, swap = source.usage, source.swap_usage
        target.swap_usage = max(0, swap.usage - usage.usage)
        unlimited = swap.limit >= _NO_LIMIT
        target.swap_limit = _NO_LIMIT if unlimited else max(0, swap.limit - usage.limit)
    target.usage = source.usage.usage
    target.usage_limit = source.usage.limit
    target.max_usage = source.usage.max_usage


def _memory_v1(source: agent_pb2.MemoryStats, target: cgroups_v1_pb2.MemoryStat) -> None:
    raw = source.stats
    guest_v2 = _is_v2(raw)
    for field, key, key_v2 in _MEMORY:
        own = _get(raw, key_v2) if guest_v2 else _get(raw, key)
        setattr(target, field, own)
        setattr(target, f"total_{field}", own if guest_v2 else _hierarchical(raw, key))
    usage, swap = source.usage, source.swap_usage
    _entry(usage, target.usage)
    _entry(source.kernel_usage, target.kernel)
    _entry(swap, target.swap)
    if guest_v2:
        # Version 1 counts memory and swap together.
        target.swap.usage = min(_NO_LIMIT, swap.usage + usage.usage)
        target.swap.limit = min(_NO_LIMIT, swap.limit + usage.limit)
        target.swap.max = 0  # two peaks don't add up to one
    target.hierarchical_memory_limit = _get(raw, "hierarchical_memory_limit") or usage.limit
    target.hierarchical_swap_limit = _get(raw, "hierarchical_memsw_limit") or target.swap.limit


def _io_v2(source: agent_pb2.BlkioStats, target: cgroups_v2_pb2.IOStat) -> None:
    devices: dict[tuple[int, int], cgroups_v2_pb2.IOEntry] = {}
    for field, directions in _IO_FIELDS.items():
        for entry in getattr(source, field):
            name = directions.get(entry.op.lower())
            if name is None:  # sums such as Total, Sync and Async
                continue
            device = (entry.major, entry.minor)
            if device not in devices:
                devices[device] = target.usage.add(major=entry.major, minor=entry.minor)
            setattr(devices[device], name, entry.value)


def _entry(source: agent_pb2.MemoryData, target: cgroups_v1_pb2.MemoryEntry) -> None:
    target.limit = source.limit
    target.usage = source.usage
    target.max = source.max_usage
    target.failcnt = source.failcnt


def _copy_link(
    source: agent_pb2.NetworkStats,
    target: cgroups_v1_pb2.NetworkStat | cgroups_v2_pb2.NetworkStat,
) -> None:
    for field in target.DESCRIPTOR.fields:  # both have the agent's names
        setattr(target, field.name, getattr(source, field.name))


def _is_v2(raw: Mapping[str, int]) -> bool:
    return "anon" in raw


def _get(raw: Mapping[str, int], key: str) -> int:
    # Not raw[key]: a protobuf map would take the key up.
    return raw.get(key, 0)


def _hierarchical(raw: Mapping[str, int], key: str) -> int:
    return raw.get(f"total_{key}", raw.get(key, 0))
