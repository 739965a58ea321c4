"""Swap space by annotations, and the limit that goes with it."""

from __future__ import annotations

from typing import Any

import pytest

from shim.errors import InvalidArgument
from shim.sizing.swap import allow_swap, container_swap

MIB = 1 << 20
DEFAULT = 2048 * MIB
KATA = "io.katacontainers.container.resource."
OURS = "io.katapy.container.resource."


def spec(limit: int = 0, prefix: str = KATA, **annotations: str) -> dict[str, Any]:
    memory = {"limit": limit} if limit else {}
    return {
        "annotations": {prefix + key: value for key, value in annotations.items()},
        "linux": {"resources": {"memory": memory}},
    }


@pytest.mark.parametrize("prefix", [KATA, OURS])
def test_the_size_is_what_kata_documents(prefix: str) -> None:
    limit = 256 * MIB
    both = str(300 * MIB)
    given = spec(limit, prefix, swappiness="60", swap_in_bytes=both)
    assert container_swap(given, DEFAULT) == 44 * MIB
    assert container_swap(spec(limit, prefix, swappiness="60"), DEFAULT) == limit
    assert container_swap(spec(0, prefix, swappiness="60"), DEFAULT) == DEFAULT


@pytest.mark.parametrize("annotations", [{}, {"swappiness": "0"}, {"swap_in_bytes": "99"}])
def test_nothing_is_asked_for_without_swappiness(annotations: dict[str, str]) -> None:
    assert container_swap(spec(MIB, **annotations), DEFAULT) == 0


@pytest.mark.parametrize(
    ("limit", "annotations", "named"),
    [
        (MIB, {"swappiness": "many"}, "swappiness"),
        (MIB, {"swappiness": "-1"}, "swappiness"),
        (MIB, {"swappiness": "201"}, "swappiness"),
        (MIB, {"swappiness": "60", "swap_in_bytes": "1e6"}, "swap_in_bytes"),
        (MIB, {"swappiness": "60", "swap_in_bytes": str(MIB - 1)}, "memory limit"),
        (0, {"swappiness": "60", "swap_in_bytes": str(MIB)}, "memory limit"),
    ],
)
def test_a_wrong_value_is_named(limit: int, annotations: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        container_swap(spec(limit, **annotations), DEFAULT)


def test_the_nodes_own_ban_is_lifted() -> None:
    given = spec(256 * MIB, swappiness="60")
    given["linux"]["resources"]["unified"] = {"memory.swap.max": "0", "memory.high": "9"}
    given["linux"]["resources"]["memory"]["swap"] = 256 * MIB
    allow_swap(given, 44 * MIB)
    resources = given["linux"]["resources"]
    assert resources["memory"] == {"limit": 256 * MIB, "swap": 300 * MIB}
    assert resources["unified"] == {"memory.high": "9"}


def test_without_a_limit_there_is_none_on_swap_space() -> None:
    given = spec(0, swappiness="60")
    allow_swap(given, MIB)
    assert given["linux"]["resources"]["memory"] == {}
