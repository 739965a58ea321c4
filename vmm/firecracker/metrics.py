"""Firecracker's metrics: lines of JSON with what was counted since the line before. Pure."""

from __future__ import annotations

import json
from typing import Any

# Groups about a device, or about all of a kind; the others are about the API and the process.
_DEVICES = ("balloon", "block", "entropy", "net", "pmem", "vsock", "memory_hotplug")
# These say how it is, and not what came since the line before.
_LATEST = frozenset(("latencies_us", "signals"))
_LATEST_NAMES = frozenset(("process_startup_time_us", "process_startup_time_cpu_us", "panic_count"))
_LINE_MAX = 1 << 20


class Counters:
    """Adds the lines up.

    Attributes:
        totals: since boot, by group and name.
    """

    def __init__(self) -> None:
        self.totals: dict[str, dict[str, int]] = {}
        self._partial = b""

    @property
    def of_devices(self) -> dict[str, dict[str, int]]:
        """Those of devices, by group and name."""
        return {group: v for group, v in self.totals.items() if _kind(group) in _DEVICES}

    @property
    def of_kinds(self) -> dict[str, dict[str, int]]:
        """Those that are of no single device, by group and name."""
        return {
            group: v
            for group, v in self.totals.items()
            if group in _DEVICES or _kind(group) not in _DEVICES
        }

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
            self._add_group(group, values)
        return True

    def _add_group(self, group: str, values: Any) -> None:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, int):
                totals = self.totals.setdefault(group, {})
                before = totals.get(name, 0)
                latest = group in _LATEST or name in _LATEST_NAMES
                totals[name] = value if latest else before + value


def _kind(group: str) -> str:
    """The kind of device of a group such as ``net_eth0``; other groups are their own."""
    return next((k for k in _DEVICES if group == k or group.startswith(f"{k}_")), group)
