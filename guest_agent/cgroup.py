"""Control groups (version 2): statistics, freezing, killing, OOM events.

Source: the kernel's cgroup-v2 documentation.
"""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .log import log
from .loop import PRIORITY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .loop import Loop

ROOT = "/sys/fs/cgroup"
NO_LIMIT = (1 << 64) - 1
_FREEZE_SECONDS = 10.0


def of_process(pid: int) -> str:
    """Folder of a process's cgroup, or "" when it has none of its own (or no version 2)."""
    with open(f"/proc/{pid}/cgroup") as file:
        lines = file.read().splitlines()
    for line in lines:
        if line.startswith("0::"):
            path = ROOT + line[3:]
            if line[3:] != "/" and os.path.exists(f"{path}/cgroup.procs"):
                return path
    return ""


def need(path: str) -> str:
    """The cgroup's folder.

    Raises:
        TtrpcError: FAILED_PRECONDITION when there is none.
    """
    if not path:
        raise TtrpcError(status.FAILED_PRECONDITION, "the container has no cgroup of its own")
    return path


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""  # the controller is off, or the cgroup is gone: no figures


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def _number(path: str) -> int:
    text = _read(path)
    return NO_LIMIT if text == "max" else int(text or 0)


def _table(path: str) -> dict[str, int]:
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


async def kill(loop: Loop, path: str) -> None:
    """Kill every process of a cgroup and of those below it; one that is gone is empty."""
    try:
        _write(f"{path}/cgroup.kill", "1")
    except FileNotFoundError:
        if not os.path.exists(path):
            return
        await freeze(loop, path, True)  # a kernel before 5.14: no pid can fork away
        try:
            for pid in _members(path):
                os.kill(pid, 9)
        finally:
            await freeze(loop, path, False)


def _members(path: str) -> list[int]:
    pids: list[int] = []
    for folder, _folders, _files in os.walk(path):
        pids += map(int, _read(f"{folder}/cgroup.procs").split())
    return pids


async def freeze(loop: Loop, path: str, frozen: bool) -> None:
    """Freeze or thaw a cgroup and wait until it is so.

    Raises:
        TtrpcError: DEADLINE_EXCEEDED when the kernel didn't report it in time.
        OSError: the cgroup can't be written to.
    """
    wanted = int(frozen)
    fd = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    loop.watch(fd, PRIORITY)
    try:
        _write(f"{path}/cgroup.freeze", str(wanted))
        while f"frozen {wanted}" not in os.pread(fd, 4096, 0).decode():
            if not await loop.wait_readable(fd, _FREEZE_SECONDS):
                verb = "freeze" if frozen else "thaw"
                raise TtrpcError(status.DEADLINE_EXCEEDED, f"{path} did not {verb}")
    finally:
        loop.forget(fd)
        os.close(fd)


class OomWatch:
    """Reports the OOM kills inside a cgroup, each once.

    Args:
        path: the cgroup's folder.
        report: called when there have been more.
    """

    __slots__ = ("_kills", "_path", "_report")

    def __init__(self, path: str, report: Callable[[], None]) -> None:
        self._path = path
        self._report = report
        self._kills = 0

    def look(self) -> bool:
        """Look now, as the kernel may tell of a kill only after its victim's end."""
        now = _table(f"{self._path}/memory.events").get("oom_kill", 0)
        more = now > self._kills
        if more:
            self._kills = now
            self._report()
        return more

    async def run(self, loop: Loop) -> None:
        """Look whenever the kernel tells, until the cgroup is removed. Run it as a task."""
        try:
            fd = os.open(f"{self._path}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # no memory controller, nothing to watch
        loop.watch(fd, PRIORITY)
        try:
            while True:
                try:
                    os.pread(fd, 1, 0)  # has the kernel tell of the next change
                except OSError:
                    return  # ENODEV: the cgroup was removed
                self.look()
                await loop.wait_readable(fd)
        finally:
            loop.forget(fd)
            os.close(fd)


def statistics(path: str) -> dict[str, Any]:
    """The figures of a cgroup as the fields of a CgroupStats message."""
    cpu = _table(f"{path}/cpu.stat")
    memory = _table(f"{path}/memory.stat")
    limits = _table(f"{path}/memory.events")
    return {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": cpu.get("usage_usec", 0) * 1000,
                "usage_in_kernelmode": cpu.get("system_usec", 0) * 1000,
                "usage_in_usermode": cpu.get("user_usec", 0) * 1000,
            },
            "throttling_data": {
                "periods": cpu.get("nr_periods", 0),
                "throttled_periods": cpu.get("nr_throttled", 0),
                "throttled_time": cpu.get("throttled_usec", 0) * 1000,
            },
        },
        "memory_stats": {
            "cache": memory.get("file", 0),
            "usage": {
                "usage": _number(f"{path}/memory.current"),
                "max_usage": _number(f"{path}/memory.peak"),
                "failcnt": limits.get("max", 0),
                "limit": _number(f"{path}/memory.max"),
            },
            "swap_usage": {
                "usage": _number(f"{path}/memory.swap.current"),
                "limit": _number(f"{path}/memory.swap.max"),
            },
            "kernel_usage": {"usage": memory.get("kernel", 0)},
            "use_hierarchy": True,
            "stats": memory,
        },
        "pids_stats": {
            "current": _number(f"{path}/pids.current"),
            "limit": _number(f"{path}/pids.max"),
        },
        "blkio_stats": _block_io(path),
        "hugetlb_stats": _hugetlb(path),
    }


def _block_io(path: str) -> dict[str, Any]:
    octets: list[dict[str, Any]] = []
    operations: list[dict[str, Any]] = []
    names = {
        "rbytes": ("Read", octets),
        "wbytes": ("Write", octets),
        "dbytes": ("Discard", octets),
        "rios": ("Read", operations),
        "wios": ("Write", operations),
        "dios": ("Discard", operations),
    }
    for line in _read(f"{path}/io.stat").splitlines():
        device, *figures = line.split()
        major, _, minor = device.partition(":")
        for figure in figures:
            key, _, value = figure.partition("=")
            if key in names:
                operation, entries = names[key]
                entries.append(
                    {
                        "major": int(major),
                        "minor": int(minor),
                        "op": operation,
                        "value": int(value),
                    }
                )
    return {"io_service_bytes_recursive": octets, "io_serviced_recursive": operations}


def _hugetlb(path: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return sizes
    for name in names:
        if name.startswith("hugetlb.") and name.endswith(".current"):
            prefix = f"{path}/{name.removesuffix('.current')}"
            sizes[name.split(".")[1]] = {
                "usage": _number(f"{prefix}.current"),
                "failcnt": _table(f"{prefix}.events").get("max", 0),
            }
    return sizes


def network() -> list[dict[str, Any]]:
    """Counters of the guest's network devices as NetworkStats, the loopback left out."""
    stats = []
    for line in _read("/proc/net/dev").splitlines()[2:]:
        name, _, figures = line.partition(":")
        values = [int(value) for value in figures.split()]
        if name.strip() != "lo" and len(values) >= 12:
            stats.append(
                {
                    "name": name.strip(),
                    "rx_bytes": values[0],
                    "rx_packets": values[1],
                    "rx_errors": values[2],
                    "rx_dropped": values[3],
                    "tx_bytes": values[8],
                    "tx_packets": values[9],
                    "tx_errors": values[10],
                    "tx_dropped": values[11],
                }
            )
    return stats


def allow_huge_pages(resources: Mapping[str, Any]) -> None:
    """Let the kernel make as many huge pages as a container's limits say, when it needs them.

    None are set aside: what a container does not use stays ordinary memory.
    """
    for limit in resources.get("hugepageLimits") or ():
        number, unit = limit["pageSize"][:-2], limit["pageSize"][-2:]
        size = int(number) * {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}[unit]
        pages = limit["limit"] // size
        path = f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/nr_overcommit_hugepages"
        if 0 < pages < 1 << 32:
            try:
                _write(path, str(_number(path) + pages))
            except OSError as error:  # pages of a size that can't be made on demand
                log("warn", "no huge pages on demand", size=limit["pageSize"], error=error)
