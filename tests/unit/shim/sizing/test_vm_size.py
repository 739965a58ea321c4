"""The size of a VM: each resource alone, the larger of default and sum, never over the maximum."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.config.hypervisors import Qemu
from shim.config.model import Config
from shim.errors import InvalidArgument
from shim.sizing.vm_size import (
    MIB,
    Demand,
    SizeRule,
    boot_demand,
    container_demand,
    merged,
    parse_cpu_list,
    size_rule,
    total,
)

RULE = SizeRule(1.0, 2048 * MIB, 96 * MIB, max_vcpus=8, max_memory=16384 * MIB)
GIB = 1024 * MIB


def _vcpus(*resources: dict[str, Any]) -> int:
    return RULE.size(total(map(container_demand, resources))).vcpus


def _memory(*resources: dict[str, Any]) -> int:
    return RULE.size(total(map(container_demand, resources))).memory_bytes // MIB


@pytest.mark.parametrize(
    ("cpu", "vcpus"),
    [
        ({}, 1),
        ({"quota": 200_000, "period": 100_000}, 2),
        ({"quota": 200_000}, 2),
        ({"quota": 150_000, "period": 100_000, "shares": 4096}, 2),
        ({"quota": 20_000, "period": 100_000}, 1),
        ({"quota": -1, "period": 100_000}, 1),
        ({"quota": -1, "shares": 3072}, 3),
        ({"quota": 0, "shares": 512}, 1),
        ({"shares": 2}, 1),
        ({"shares": 2, "cpus": "0-5"}, 1),  # the kubelet's pool of all that is not taken
        ({"shares": 0, "cpus": "0-2,7"}, 4),
        ({"quota": 2_000_000, "period": 100_000}, 8),
    ],
)
def test_vcpus_of_one_container(cpu: dict[str, Any], vcpus: int) -> None:
    assert _vcpus({"cpu": cpu}) == vcpus
    assert _memory({"cpu": cpu}) == 2048


def test_vcpus_of_several_containers() -> None:
    half = {"cpu": {"quota": 50_000, "period": 100_000}}
    assert _vcpus(half) == _vcpus(half, half) == 1
    assert _vcpus(half, half, half) == 2
    third = {"cpu": {"quota": 10_000, "period": 100_000}}
    assert _vcpus(*[third] * 10) == 1  # ten tenths are a little under or over one
    assert _vcpus({"cpu": {"cpus": "0-1"}}, {"cpu": {"cpus": "1-2"}}) == 3


@pytest.mark.parametrize(
    ("resources", "mib"),
    [
        ({}, 2048),
        ({"memory": {"limit": 512 * MIB}}, 2048),
        ({"memory": {"limit": -1}}, 2048),
        ({"memory": {"limit": (1 << 63) - 4096}}, 2048),
        ({"memory": {"limit": 4 * GIB}}, 4260),  # and 96, and a 63rd
        ({"memory": {"limit": 2 * GIB}, "hugepageLimits": [{"limit": 2 * GIB}]}, 4260),
        ({"memory": {"limit": 64 * GIB}}, 16384),
        ({"unified": {"memory.max": str(4 * GIB)}}, 4260),
        ({"unified": {"memory.max": "max"}, "memory": {"limit": 8 * GIB}}, 2048),
    ],
)
def test_memory_of_one_container(resources: dict[str, Any], mib: int) -> None:
    assert _memory(resources) == mib
    assert _vcpus(resources) == 1


def test_unified_limits_count() -> None:
    assert _vcpus({"unified": {"cpu.max": "250000 100000"}}) == 3
    assert _vcpus({"unified": {"cpu.max": "250000"}}) == 3
    assert _vcpus({"unified": {"cpu.max": "max 100000"}}) == 1


def test_a_pod_is_sized_by_its_annotations() -> None:
    prefix = "io.kubernetes.cri.sandbox-"
    annotations = {
        "io.kubernetes.cri.container-type": "sandbox",
        f"{prefix}cpu-quota": "300000",
        f"{prefix}cpu-period": "100000",
        f"{prefix}cpu-shares": "1024",
        f"{prefix}memory": str(3 * GIB),
    }
    pause = {"cpu": {"shares": 2}, "memory": {"limit": GIB}}
    spec = {"annotations": annotations, "linux": {"resources": pause}}
    assert boot_demand(spec) == Demand(3.0, frozenset(), 3 * GIB)
    del annotations["io.kubernetes.cri.container-type"]
    assert boot_demand(spec) == Demand(0.0, frozenset(), GIB)
    assert boot_demand({}) == Demand()


def test_an_annotation_that_is_no_number() -> None:
    key = "io.kubernetes.cri.sandbox-memory"
    spec = {"annotations": {"io.kubernetes.cri.container-type": "sandbox", key: "1Gi"}}
    with pytest.raises(InvalidArgument, match=f"{key}: '1Gi'"):
        boot_demand(spec)


def test_what_the_maxima_cut_off_is_told() -> None:
    assert RULE.shortfall(Demand(8.0, memory_bytes=15 * GIB)) == ""
    text = RULE.shortfall(Demand(9.5, memory_bytes=17 * GIB))
    assert "10 vCPUs (default_maxvcpus allows 8)" in text
    assert "MiB (default_maxmemory allows 16384)" in text


def test_the_rule_explains_itself() -> None:
    text = RULE.explain(Demand(1.5))
    assert text == (
        "2 vCPUs, 2048 MiB: the pod asks for 1.5 CPUs and no memory, "
        "the defaults are 1 vCPUs and 2048 MiB"
    )


@pytest.mark.parametrize(
    ("configured", "default", "most"), [(1.0, 1.0, 4), (1.5, 1.5, 4), (0.0, 1.0, 4), (-1.0, 4.0, 4)]
)
def test_the_rule_of_a_configuration(configured: float, default: float, most: int) -> None:
    config = Config(hypervisor=Qemu(default_vcpus=configured, default_maxmemory=4096))
    rule = size_rule(config, host_cpus=4, host_memory=8 * GIB)
    assert (rule.default_vcpus, rule.max_vcpus) == (default, most)
    assert (rule.default_memory, rule.max_memory) == (2 * GIB, 4 * GIB)


def test_an_update_changes_what_it_names() -> None:
    before = {"cpu": {"quota": 1, "period": 2}, "memory": {"limit": 3}, "pids": {"limit": 9}}
    after = merged(before, {"cpu": {"quota": 5}, "pids": {"limit": 4}})
    assert after == {
        "cpu": {"quota": 5, "period": 2},
        "memory": {"limit": 3},
        "pids": {"limit": 4},
    }
    assert before["cpu"] == {"quota": 1, "period": 2}


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "1-", "1-2-3", "99999"])
def test_cpu_lists_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no range"):
        parse_cpu_list(text)


DEMANDS = st.builds(
    Demand,
    st.floats(0, 1e6),
    st.frozensets(st.integers(0, 99)),
    st.integers(0, 1 << 62),
)


@given(st.lists(DEMANDS, max_size=6), DEMANDS)
def test_more_containers_never_make_the_vm_smaller(demands: list[Demand], more: Demand) -> None:
    one, both = RULE.size(total(demands)), RULE.size(total([*demands, more]))
    assert 1 <= one.vcpus <= both.vcpus <= RULE.max_vcpus
    assert RULE.default_memory <= one.memory_bytes <= both.memory_bytes <= RULE.max_memory
    assert both.memory_bytes % MIB == 0
    if both.memory_bytes < RULE.max_memory:
        # The guest keeps its share and every limit can be reached.
        kernel = both.memory_bytes // 64 + RULE.overhead_memory
        assert both.memory_bytes - kernel >= total([*demands, more]).memory_bytes or (
            both.memory_bytes == RULE.default_memory
        )
