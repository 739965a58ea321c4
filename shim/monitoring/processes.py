"""What the kernel counts about a process of the host, under the names of Kata's metrics.

Blocking; run it in a thread. What can't be read, because the process ended or is another
user's, is left out.
Source: proc(5); Kata docs/design/kata-2-0-metrics.md, as its Rust runtime fills it in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from shim.monitoring.exposition import Family, gauge

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATUS_ITEMS = ("vm", "rss", "hugetlb", "voluntary", "nonvoluntary")
_LINK_ITEMS = (
    *("recv_bytes", "recv_packets", "recv_errs", "recv_drop"),
    *("recv_fifo", "recv_frame", "recv_compressed", "recv_multicast"),
    *("sent_bytes", "sent_packets", "sent_errs", "sent_drop"),
    *("sent_fifo", "sent_colls", "sent_carrier", "sent_compressed"),
)


def process_families(prefix: str, what: str, pid: int) -> list[Family]:
    """Return threads, descriptors, times (in ticks), memory (in KiB) and I/O of a process.

    Args:
        prefix: what the families' names begin with, such as ``kata_shim``.
        what: what to call the process.
        pid: the process.
    """
    families = []
    if stat := _stat(pid):
        times = dict(zip(("utime", "stime", "cutime", "cstime"), stat[11:15], strict=True))
        families += [
            gauge(f"{prefix}_threads", f"Threads of {what}.", stat[17]),
            gauge(f"{prefix}_proc_stat", f"CPU time of {what} in ticks.", times),
        ]
    status = {k: v for k, v in _table(pid, "status") if k.startswith(_STATUS_ITEMS)}
    families += [
        gauge(f"{prefix}_proc_status", f"Memory in KiB and switches of {what}.", status),
        gauge(f"{prefix}_io_stat", f"Reads and writes of {what}.", dict(_table(pid, "io"))),
    ]
    if (count := _descriptors(pid)) is not None:
        families.append(gauge(f"{prefix}_fds", f"Open descriptors of {what}.", count))
    return families


def standard_families(prefix: str, pid: int) -> list[Family]:
    """Return what Prometheus's own libraries tell of a process, under our prefix."""
    families = []
    if stat := _stat(pid):
        started = _boot_time() + stat[19] / _TICKS
        cpu = Family(
            f"{prefix}_process_cpu_seconds_total", "counter", "User and system CPU time in seconds."
        )
        cpu.add((stat[11] + stat[12]) / _TICKS)
        families += [
            cpu,
            gauge(f"{prefix}_process_virtual_memory_bytes", "Virtual memory.", stat[20]),
            gauge(f"{prefix}_process_resident_memory_bytes", "Resident memory.", stat[21] * _PAGE),
            gauge(f"{prefix}_process_start_time_seconds", "Start, since the epoch.", started),
        ]
    if (count := _descriptors(pid)) is not None:
        families.append(gauge(f"{prefix}_process_open_fds", "Open descriptors.", count))
    for line in _lines(pid, "limits"):
        words = line.split()
        if line.startswith("Max open files") and words[3].isdigit():
            about = "Descriptors it may have open."
            families.append(gauge(f"{prefix}_process_max_fds", about, int(words[3])))
    return families


def link_family(name: str, about: str, pid: int) -> Family:
    """Return the counters of the links in a process's network namespace."""
    family = Family(name, "gauge", about)
    for line in _lines(pid, "net/dev")[2:]:
        link, _, values = line.partition(":")
        for item, value in zip(_LINK_ITEMS, values.split(), strict=False):
            family.add(int(value), {"interface": link.strip(), "item": item})
    return family


def cost(pids: Iterable[int]) -> tuple[float, int]:
    """Return what processes cost the host together.

    Returns:
        CPU time in seconds, and memory in bytes, in which a page that processes share is
        divided among them.
    """
    seconds, memory = 0.0, 0
    for pid in pids:
        if stat := _stat(pid):
            seconds += (stat[11] + stat[12]) / _TICKS
        memory += dict(_table(pid, "smaps_rollup")).get("pss", 0) << 10
    return seconds, memory


def serving(pid: int) -> int:
    """The process that does a daemon's work: its only child where it has one, else itself.

    virtiofsd locks itself into namespaces of a child's and waits for that.
    """
    children = _lines(pid, f"task/{pid}/children")
    found = children[0].split() if children else []
    return int(found[0]) if len(found) == 1 else pid


def _stat(pid: int) -> list[int]:
    """The fields of /proc/PID/stat after the name: number 3 of proc(5) is the first here."""
    lines = _lines(pid, "stat")
    words = lines[0].rpartition(")")[2].split() if lines else []
    return [0, *map(int, words[1:])] if words else []


def _table(pid: int, name: str) -> Iterator[tuple[str, int]]:
    """The numbers of a file with lines of ``Key: number …``."""
    for line in _lines(pid, name):
        key, _, rest = line.partition(":")
        value = rest.split(None, 1)[:1]
        if value and value[0].isdigit():
            yield key.lower(), int(value[0])


def _descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _boot_time() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("btime ")), 0)


def _lines(pid: int, name: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
