"""Firecracker's metrics: lines of JSON with what was counted since the line before. Pure."""

from __future__ import annotations

import json
from typing import Any

# Groups about a device; the others are about the API and the process.
_DEVICES = ("balloon", "block", "entropy", "net", "pmem", "vsock", "memory_hotplug")
_LINE_MAX = 1 << 20


class Counters:
    """Adds the lines up."""

    def __init__(self) -> None:
        self.totals: dict[str, dict[str, int]] = {}
        self._partial = b""

    def feed(self, data: bytes) -> int:
        """Take bytes of the metrics file; return how many lines were complete."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_MAX:
            self._partial = b""
        return sum(self._add(line) for line in lines)

    def _add(self, line: bytes) -> bool:
        try:
            groups = json.loads(line)
        except ValueError:
            return False  # the rest of a line that was cut off
        if not isinstance(groups, dict):
            return False
        for group, values in groups.items():
            if group.split("_")[0] in _DEVICES or group in _DEVICES:
                self._add_group(group, values)
        return True

    def _add_group(self, group: str, values: Any) -> None:
        totals = self.totals.setdefault(group, {})
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, int):
                totals[name] = totals.get(name, 0) + value
