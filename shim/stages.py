"""When each stage of a pod's start was reached: one structure for log, metrics, benchmark."""

from __future__ import annotations

import time


class Stages:
    """Monotonic stamps by name, in the order they were reached.

    Args:
        stamps: stages already passed, name to ns of CLOCK_MONOTONIC.
    """

    def __init__(self, stamps: dict[str, int] | None = None) -> None:
        self._stamps = dict(stamps or {})

    def reached(self, name: str) -> bool:
        """Stamp a stage; the first time counts, and only then it is true."""
        now = time.monotonic_ns()
        return self._stamps.setdefault(name, now) is now

    def __str__(self) -> str:
        """``name=+ms`` for each stage, counted from the first."""
        ordered = sorted(self._stamps.items(), key=lambda item: item[1])
        if not ordered:
            return ""
        first = ordered[0][1]
        return " ".join(f"{name}=+{(stamp - first) / 1e6:.0f}ms" for name, stamp in ordered)
