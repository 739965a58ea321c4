"""Each call is counted once, under the smallest bound that it stayed within."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc.durations import BOUNDS_MS, Durations


@given(st.lists(st.integers(0, 2_000_000_000), min_size=1))
def test_calls_are_counted_by_their_bounds(calls: list[int]) -> None:
    durations = Durations()
    expected = [0] * (len(BOUNDS_MS) + 1)
    for call in calls:
        durations.add(call)
        expected[bisect_left(BOUNDS_MS, call / 1e6)] += 1
    assert durations.counts == expected
    assert durations.total_ns == sum(calls)


@pytest.mark.parametrize(
    ("nanoseconds", "place"),
    [(0, 0), (1_000_000, 0), (1_000_001, 1), (2_000_000, 1), (512_000_000, 9), (512_000_001, 10)],
)
def test_a_bound_is_within_itself(nanoseconds: int, place: int) -> None:
    durations = Durations()
    durations.add(nanoseconds)
    assert durations.counts.index(1) == place
