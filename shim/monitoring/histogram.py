"""Durations of calls as a histogram of Prometheus's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shim.monitoring.exposition import Family
from shim.ttrpc.durations import BOUNDS_MS, Durations


def histogram(name: str, about: str, calls: Mapping[str, Durations], label: str = "") -> Family:
    """Make a family of the calls of each kind; those never made are left out.

    Args:
        name: the family's; its unit is milliseconds.
        about: its help.
        calls: durations by kind.
        label: tells the kinds apart; empty where there is one.
    """
    family = Family(name, "histogram", about)
    for kind, durations in sorted(calls.items()):
        if not durations.counts:
            continue
        labels = {label: kind} if label else {}
        total = 0
        for bound, count in zip((*BOUNDS_MS, "+Inf"), durations.counts, strict=True):
            total += count
            family.add(total, {**labels, "le": str(bound)}, "_bucket")
        family.add(durations.total_ns / 1e6, labels, "_sum")
        family.add(total, labels, "_count")
    return family


def together(several: Iterable[Durations]) -> Durations:
    """Add calls up that are of one kind."""
    total = Durations()
    for one in several:
        if one.counts:
            total.total_ns += one.total_ns
            before = total.counts or [0] * len(one.counts)
            total.counts = [a + b for a, b in zip(before, one.counts, strict=True)]
    return total
