"""The guest's NUMA nodes by configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shim.errors import ConfigError
from shim.sizing.numa import numa_nodes
from vmm.spec import MIB, NumaNode, VmSpec


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    return VmSpec(Path("/k"), tmp_path, vcpus=1, max_vcpus=5, memory_bytes=257 * MIB)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with the nodes 0 to 3."""
    (tmp_path / "online").write_text("0-3\n")
    return tmp_path


def test_a_guest_node_for_each_of_the_host_s(spec: VmSpec, host: Path) -> None:
    nodes = numa_nodes((), spec, host)
    assert [node.host_nodes for node in nodes] == [(0,), (1,), (2,), (3,)]
    assert [node.vcpus for node in nodes] == [2, 1, 1, 1]
    assert sum(node.memory_bytes for node in nodes) == spec.memory_bytes


def test_a_mapping_gives_the_nodes(spec: VmSpec, host: Path) -> None:
    assert numa_nodes(("0, 2-3", "1"), spec, host) == (
        NumaNode(3, 129 * MIB, (0, 2, 3)),
        NumaNode(2, 128 * MIB, (1,)),
    )


def test_huge_pages_stay_whole(spec: VmSpec, host: Path) -> None:
    nodes = numa_nodes(("0", "1"), replace(spec, hugepages=True, memory_bytes=258 * MIB), host)
    assert [node.memory_bytes // MIB for node in nodes] == [130, 128]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (("0", "4"), "no NUMA node 4"),
        (("0", "one"), "'one': accepted is"),
        (("3-1",), "names no node"),
        (("0",) * 6, "6 guest nodes.*at most 5"),
    ],
)
def test_mistakes(mapping: tuple[str, ...], message: str, spec: VmSpec, host: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        numa_nodes(mapping, spec, host)


def test_a_host_that_says_nothing_of_nodes(spec: VmSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this host has no NUMA nodes"):
        numa_nodes(("0",), spec, tmp_path)
