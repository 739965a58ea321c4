"""GetMetrics: the agent's process and the guest in Prometheus's text format.

Names, items and units are those of Kata's agent, so that dashboards made for it work:
memory in bytes, CPU times in milliseconds, the process's own status in KiB.
Source: Kata docs/design/kata-2-0-metrics.md; proc(5); the Prometheus text format.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from protos.lite import Message

    Sample = tuple[str, float]

CPU_ITEMS = (
    *("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"),
    *("guest", "guest_nice"),
)
DISK_ITEMS = (
    *("reads", "merged", "sectors_read", "time_reading"),
    *("writes", "writes_merged", "sectors_written", "time_writing"),
    *("in_progress", "time_in_progress", "weighted_time_in_progress"),
    *("discards", "discards_merged", "sectors_discarded", "time_discarding"),
    *("flushes", "time_flushing"),
)
LINK_ITEMS = (
    *("recv_bytes", "recv_packets", "recv_errs", "recv_drop"),
    *("recv_fifo", "recv_frame", "recv_compressed", "recv_multicast"),
    *("sent_bytes", "sent_packets", "sent_errs", "sent_drop"),
    *("sent_fifo", "sent_colls", "sent_carrier", "sent_compressed"),
)
_STATUS_ITEMS = ("vm", "rss", "hugetlb", "voluntary", "nonvoluntary")


class Metrics:
    """The figures of one guest."""

    __slots__ = ("_scrapes",)

    def __init__(self) -> None:
        self._scrapes = 0

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of grpc.AgentService in this class."""
        return {"GetMetrics": self.get}

    async def get(self, _request: Message) -> Mapping[str, Any]:
        """GetMetrics."""
        self._scrapes += 1
        lines: list[str] = []
        _family(lines, "kata_agent_scrape_count", [("", self._scrapes)], "counter")
        _add_agent(lines)
        _add_guest(lines)
        return {"metrics": "\n".join(lines) + "\n"}


def _add_agent(lines: list[str]) -> None:
    stat = _read("/proc/self/stat").rpartition(")")[2].split()
    times = dict(zip(("utime", "stime", "cutime", "cstime"), map(int, stat[11:15]), strict=True))
    seconds = (times["utime"] + times["stime"]) / os.sysconf("SC_CLK_TCK")
    resident = int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
    descriptors = os.listdir("/proc/self/fd")
    for name, value in (
        ("threads", int(stat[17])),
        ("total_time", seconds),
        ("total_vm", int(stat[20])),
        ("total_rss", resident),
        ("process_virtual_memory_bytes", int(stat[20])),
        ("process_resident_memory_bytes", resident),
        ("process_open_fds", len(descriptors)),
    ):
        _family(lines, f"kata_agent_{name}", [("", value)])
    _family(lines, "kata_agent_process_cpu_seconds_total", [("", seconds)], "counter")
    _items(lines, "kata_agent_proc_stat", times.items())
    _items(lines, "kata_agent_io_stat", _table("/proc/self/io"))
    status = (pair for pair in _table("/proc/self/status") if pair[0].startswith(_STATUS_ITEMS))
    _items(lines, "kata_agent_proc_status", status)


def _add_guest(lines: list[str]) -> None:
    load = _read("/proc/loadavg").split()
    if load:
        averages = zip(("load1", "load5", "load15"), map(float, load[:3]), strict=True)
        _items(lines, "kata_guest_load", averages)
        running, _, total = load[3].partition("/")
        _items(lines, "kata_guest_tasks", [("cur", int(running)), ("max", int(total))])
    _items(lines, "kata_guest_meminfo", _memory())
    _family(lines, "kata_guest_cpu_time", _cpu_times())
    _items(lines, "kata_guest_vm_stat", _rows("/proc/vmstat"))
    _family(lines, "kata_guest_diskstat", _disks())
    _family(lines, "kata_guest_netdev_stat", _links())


def _memory() -> Iterator[Sample]:
    for line in _lines("/proc/meminfo"):
        key, _, rest = line.partition(":")
        words = rest.split()
        yield memory_item(key), int(words[0]) << (10 if words[1:] == ["kB"] else 0)


def memory_item(key: str) -> str:
    """Kata's name for a key of /proc/meminfo: ``MemTotal`` is ``mem_total``."""
    # What it takes for one word, or for two.
    if key.startswith("DirectMap"):
        return f"direct_map_{key[9:]}"
    key = key.replace("HugePages", "Hugepages").replace("Percpu", "PerCpu")
    if not key.startswith("Hugepages_"):
        key = key.replace("NFS", "Nfs").replace("_AS", "_As")
    name = ""
    for position, char in enumerate(key):
        if char.isupper():
            follows_word = position and key[position - 1].isalnum()
            if follows_word:
                name += "_"
            name += char.lower()
        elif char in "(_":
            name += "_"
        elif char != ")":
            name += char
    return name


def _cpu_times() -> Iterator[Sample]:
    milliseconds = 1000 // os.sysconf("SC_CLK_TCK")
    for line in _lines("/proc/stat"):
        if not line.startswith("cpu"):
            break
        cpu, *values = line.split()
        name = cpu[3:] or "total"
        for item, value in zip(CPU_ITEMS, values, strict=False):
            yield f'{{cpu="{name}",item="{item}"}}', int(value) * milliseconds


def _disks() -> Iterator[Sample]:
    for line in _lines("/proc/diskstats"):
        _major, _minor, disk, *values = line.split()
        for item, value in zip(DISK_ITEMS, values, strict=False):
            yield f'{{disk="{_escaped(disk)}",item="{item}"}}', int(value)


def _links() -> Iterator[Sample]:
    for line in _lines("/proc/net/dev")[2:]:
        link, _, values = line.partition(":")
        for item, value in zip(LINK_ITEMS, values.split(), strict=False):
            yield f'{{interface="{_escaped(link.strip())}",item="{item}"}}', int(value)


def _table(path: str) -> Iterator[Sample]:
    """The numbers of a file with lines of ``Key: number …``."""
    for line in _lines(path):
        key, _, rest = line.partition(":")
        value = rest.split(None, 1)[:1]
        if value and value[0].isdigit():
            yield key.lower(), int(value[0])


def _rows(path: str) -> Iterator[Sample]:
    """The numbers of a file with lines of ``key number``."""
    for line in _lines(path):
        key, value = line.split()
        yield key, int(value)


def _items(lines: list[str], name: str, samples: Iterable[Sample]) -> None:
    _family(lines, name, [(f'{{item="{item}"}}', value) for item, value in samples])


def _family(lines: list[str], name: str, samples: Iterable[Sample], kind: str = "gauge") -> None:
    rows = [f"{name}{labels} {value}" for labels, value in samples]
    if rows:
        lines.append(f"# TYPE {name} {kind}")
        lines += rows


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:  # this kernel has no such file, or does not let us read it
        return ""


def _lines(path: str) -> list[str]:
    return _read(path).splitlines()
