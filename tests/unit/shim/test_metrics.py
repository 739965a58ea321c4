from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protos.kata import agent_pb2
from shim import metrics

NO_LIMIT = (1 << 64) - 1
U63 = st.integers(0, (1 << 63) - 1)
KEYS = [
    "anon",
    "file",
    "cache",
    "rss",
    "pgfault",
    "total_rss",
    "inactive_file",
    "usage",
    "psi",
    "x",
]


def response(
    stats: dict[str, int], usage: tuple[int, int], swap: tuple[int, int]
) -> agent_pb2.StatsContainerResponse:
    memory = agent_pb2.MemoryStats(
        usage=agent_pb2.MemoryData(usage=usage[0], limit=usage[1], max_usage=7777, failcnt=3),
        swap_usage=agent_pb2.MemoryData(usage=swap[0], limit=swap[1], max_usage=88),
        kernel_usage=agent_pb2.MemoryData(usage=5),
        stats=stats,
    )
    blkio = agent_pb2.BlkioStats()
    for op, value in (("Read", 100), ("Write", 200), ("Total", 300)):
        blkio.io_service_bytes_recursive.add(major=254, minor=16, op=op, value=value)
        blkio.io_serviced_recursive.add(major=254, minor=16, op=op, value=value // 100)
    blkio.io_service_bytes_recursive.add(major=254, minor=32, op="read", value=9)
    return agent_pb2.StatsContainerResponse(
        cgroup_stats=agent_pb2.CgroupStats(
            cpu_stats=agent_pb2.CpuStats(
                cpu_usage=agent_pb2.CpuUsage(
                    total_usage=5_000_999,
                    percpu_usage=[3_000_000, 2_000_999],
                    usage_in_kernelmode=1_000_000,
                    usage_in_usermode=4_000_999,
                ),
                throttling_data=agent_pb2.ThrottlingData(
                    periods=10, throttled_periods=4, throttled_time=2_500_000
                ),
            ),
            memory_stats=memory,
            pids_stats=agent_pb2.PidsStats(current=3, limit=100),
            blkio_stats=blkio,
            hugetlb_stats={"2MB": agent_pb2.HugetlbStats(usage=4096, max_usage=8192, failcnt=1)},
        ),
        network_stats=[
            agent_pb2.NetworkStats(
                name="eth0",
                rx_bytes=1,
                rx_packets=2,
                rx_errors=3,
                rx_dropped=4,
                tx_bytes=5,
                tx_packets=6,
                tx_errors=7,
                tx_dropped=8,
            )
        ],
    )


V2_STAT = {
    "anon": 1000,
    "file": 2000,
    "file_mapped": 30,
    "anon_thp": 40,
    "inactive_file": 500,
    "pgfault": 60,
    "pgmajfault": 7,
    "slab": 8,
    "workingset_refault_anon": 2,
    "workingset_refault_file": 3,
    "kernel": 1,  # newer than the message
}
V1_STAT = {
    "cache": 1,
    "rss": 2,
    "pgpgin": 3,
    "total_cache": 2000,
    "total_rss": 1000,
    "total_pgpgin": 4,
    "total_inactive_file": 500,
    "total_pgfault": 60,
    "hierarchical_memory_limit": 4000,
    "hierarchical_memsw_limit": 6000,
}


def test_cpu_pids_and_network_for_v2_hosts() -> None:
    made = metrics.cgroup_v2(response(V2_STAT, (3500, 4000), (0, NO_LIMIT)))
    assert (made.cpu.usage_usec, made.cpu.user_usec, made.cpu.system_usec) == (5000, 4000, 1000)
    assert (made.cpu.nr_periods, made.cpu.nr_throttled, made.cpu.throttled_usec) == (10, 4, 2500)
    assert (made.pids.current, made.pids.limit) == (3, 100)
    assert len(made.network) == 1
    link = made.network[0]
    assert (link.name, link.rx_bytes, link.rx_dropped, link.tx_bytes) == ("eth0", 1, 4, 5)
    assert (link.tx_packets, link.tx_errors, link.tx_dropped) == (6, 7, 8)
    assert made.DESCRIPTOR.full_name == "io.containerd.cgroups.v2.Metrics"
    assert not made.HasField("memory_events")


def test_memory_of_a_v2_guest_for_v2_hosts() -> None:
    memory = metrics.cgroup_v2(response(V2_STAT, (3500, 4000), (12, NO_LIMIT))).memory
    assert (memory.anon, memory.file, memory.file_mapped, memory.slab) == (1000, 2000, 30, 8)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (3500, 4000, 7777)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (12, NO_LIMIT, 88)
    assert memory.workingset_refault == 5
    assert (memory.pgfault, memory.pgmajfault, memory.inactive_file) == (60, 7, 500)


def test_memory_of_a_v1_guest_for_v2_hosts() -> None:
    memory = metrics.cgroup_v2(response(V1_STAT, (3500, 4000), (3600, 6000))).memory
    assert (memory.anon, memory.file, memory.inactive_file) == (1000, 2000, 500)
    assert (memory.pgfault, memory.usage, memory.usage_limit) == (60, 3500, 4000)
    assert (memory.swap_usage, memory.swap_limit) == (100, 2000)


def test_no_limit_stays_no_limit() -> None:
    for stat in (V1_STAT, V2_STAT):
        both = response(stat, (1, NO_LIMIT), (1, NO_LIMIT))
        assert metrics.cgroup_v2(both).memory.usage_limit == NO_LIMIT
        assert metrics.cgroup_v2(both).memory.swap_limit == NO_LIMIT
        assert metrics.cgroup_v1(both).memory.usage.limit == NO_LIMIT
        assert metrics.cgroup_v1(both).memory.swap.limit == NO_LIMIT


def test_io_and_hugetlb_for_v2_hosts() -> None:
    made = metrics.cgroup_v2(response(V2_STAT, (0, 0), (0, 0)))
    devices = {(e.major, e.minor): (e.rbytes, e.wbytes, e.rios, e.wios) for e in made.io.usage}
    assert devices == {(254, 16): (100, 200, 1, 2), (254, 32): (9, 0, 0, 0)}
    (huge,) = made.hugetlb
    assert (huge.pagesize, huge.current, huge.failcnt, huge.max) == ("2MB", 4096, 1, 0)


def test_everything_for_v1_hosts() -> None:
    made = metrics.cgroup_v1(response(V1_STAT, (3500, 4000), (3600, 6000)))
    assert made.DESCRIPTOR.full_name == "io.containerd.cgroups.v1.Metrics"
    assert (made.cpu.usage.total, made.cpu.usage.kernel, made.cpu.usage.user) == (
        5_000_999,
        1_000_000,
        4_000_999,
    )
    assert list(made.cpu.usage.per_cpu) == [3_000_000, 2_000_999]
    assert made.cpu.throttling.throttled_time == 2_500_000
    memory = made.memory
    assert (memory.cache, memory.total_cache) == (1, 2000)
    assert (memory.rss, memory.total_rss) == (2, 1000)
    assert (memory.pg_pg_in, memory.total_pg_pg_in) == (3, 4)
    assert memory.total_pg_fault == 60
    assert (memory.usage.usage, memory.usage.limit) == (3500, 4000)
    assert (memory.usage.max, memory.usage.failcnt) == (7777, 3)
    assert (memory.swap.usage, memory.swap.limit, memory.kernel.usage) == (3600, 6000, 5)
    assert memory.hierarchical_memory_limit == 4000
    assert memory.hierarchical_swap_limit == 6000
    totals = [e for e in made.blkio.io_service_bytes_recursive if e.op == "Total"]
    assert [(e.major, e.minor, e.value) for e in totals] == [(254, 16, 300)]
    assert made.hugetlb[0].max == 8192
    assert made.network[0].tx_dropped == 8


def test_memory_of_a_v2_guest_for_v1_hosts() -> None:
    memory = metrics.cgroup_v1(response(V2_STAT, (3500, 4000), (100, 2000))).memory
    assert (memory.rss, memory.total_rss, memory.cache, memory.total_cache) == (
        1000,
        1000,
        2000,
        2000,
    )
    assert (memory.total_inactive_file, memory.total_pg_maj_fault) == (500, 7)
    assert (memory.swap.usage, memory.swap.limit) == (3600, 6000)
    assert (memory.hierarchical_memory_limit, memory.hierarchical_swap_limit) == (4000, 6000)


def test_an_agent_that_reports_nothing() -> None:
    empty = agent_pb2.StatsContainerResponse()
    assert metrics.cgroup_v2(empty).memory.usage == 0
    assert not metrics.cgroup_v1(empty).network


@given(st.dictionaries(st.sampled_from(KEYS), U63), st.tuples(U63, U63), st.tuples(U63, U63))
def test_any_counters_convert_and_leave_the_source_alone(
    stat: dict[str, int], usage: tuple[int, int], swap: tuple[int, int]
) -> None:
    source = response(stat, usage, swap)
    before = source.SerializeToString(deterministic=True)
    assert metrics.cgroup_v2(source).memory.usage == usage[0]
    assert metrics.cgroup_v1(source).memory.usage.usage == usage[0]
    assert source.SerializeToString(deterministic=True) == before
