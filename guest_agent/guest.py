"""The RPCs about the guest: health, details, processors and memory, clock, random, swap.

Source: Kata's agent semantics; sysfs ABI; random(4); the Prometheus text format.
"""

from __future__ import annotations

import fcntl
import os
from sys import byteorder
from time import CLOCK_REALTIME, clock_settime_ns

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import block, libc
from .ioctls import RNDADDENTROPY, RNDRESEEDCRNG
from .storage import DRIVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from protos.lite import Message

    from .loop import Loop

VERSION = "0.1.0"
API_VERSION = "0.0.1"
FEATURES = [
    *("clock", "dial", "listeners", "oci-json", "pod-namespaces", "pull-file", "push-files"),
    *("remove-device", "socket-covers", "sockets", "stdio-stream", "sysctl"),
]
_HUGE_PAGES = "/sys/kernel/mm/hugepages"
_IO_COST = "/sys/fs/cgroup/io.cost.qos"  # in the root group where groups have a weight
_SERVING = 1
_CPU = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"
_ONLINE_SECONDS = 10.0
_POLL_SECONDS = 0.02


class Guest:
    """The machine the agent runs on.

    Args:
        stamps: when the stages of the start were reached, in microseconds of the
            monotonic clock.
    """

    __slots__ = ("_is_init", "_loop", "_stamps")

    def __init__(self, loop: Loop, stamps: Mapping[str, int], is_init: bool) -> None:
        self._loop = loop
        self._stamps = stamps
        self._is_init = is_init

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of grpc.AgentService in this class."""
        return {
            "OnlineCPUMem": self.online_cpu_mem,
            "ReseedRandomDev": self.reseed,
            "GetGuestDetails": self.details,
            "MemHotplugByProbe": self.probe_memory,
            "SetGuestDateTime": self.set_date_time,
            "GetMetrics": self.metrics,
            "AddSwap": self.add_swap,
            "AddSwapPath": self.add_swap_path,
        }

    @property
    def health(self) -> dict[str, Any]:
        """The handlers of grpc.Health."""
        return {"Check": self.check, "Version": self.version}

    @property
    def extension(self) -> dict[str, Any]:
        """The handlers of our extension in this class."""
        return {
            "Hello": self.hello,
            "SetClock": self.set_clock,
            "RemoveDevice": self.remove_device,
        }

    async def check(self, _request: Message) -> Mapping[str, Any]:
        """Health.Check."""
        return {"status": _SERVING}

    async def version(self, _request: Message) -> Mapping[str, Any]:
        """Health.Version."""
        return {"grpc_version": API_VERSION, "agent_version": VERSION}

    async def hello(self, _request: Message) -> Mapping[str, Any]:
        """Extension.Hello."""
        features = FEATURES + _limits()
        return {"agent_version": VERSION, "features": features, "boot_stamps": self._stamps}

    async def set_clock(self, request: Message) -> None:
        """Extension.SetClock."""
        clock_settime_ns(CLOCK_REALTIME, request["unix_nanos"])

    async def remove_device(self, request: Message) -> None:
        """Extension.RemoveDevice."""
        block.remove_pci(request["pci_path"])

    async def set_date_time(self, request: Message) -> None:
        """SetGuestDateTime."""
        clock_settime_ns(CLOCK_REALTIME, request["Sec"] * 10**9 + request["Usec"] * 1000)

    async def details(self, request: Message) -> Mapping[str, Any]:
        """GetGuestDetails."""
        size = 0
        if request["mem_block_size"]:
            text = _read(f"{_MEMORY}/block_size_bytes")
            size = int(text, 16) if text else 0
        probe = f"{_MEMORY}/probe"
        return {
            "mem_block_size_bytes": size,
            "support_mem_hotplug_probe": request["mem_hotplug_probe"] and os.path.exists(probe),
            "agent_details": {
                "version": VERSION,
                "init_daemon": self._is_init,
                "storage_handlers": DRIVERS,
                "supports_seccomp": True,
                "extra_features": ["seccomp"],
            },
        }

    async def online_cpu_mem(self, request: Message) -> None:
        """OnlineCPUMem: waits for `nb_cpus` more processors to come online."""
        left = request["nb_cpus"]
        waited = 0.0
        while True:
            left -= _set_online(_CPU, "cpu")
            if left <= 0 or not request["wait"]:
                break
            if waited >= _ONLINE_SECONDS:
                text = f"{left} processors did not appear within {_ONLINE_SECONDS:g} s"
                raise TtrpcError(status.DEADLINE_EXCEEDED, text)
            await self._loop.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS
        if not request["cpu_only"]:
            _set_online(_MEMORY, "memory")

    async def probe_memory(self, request: Message) -> None:
        """MemHotplugByProbe."""
        for address in request["memHotplugProbeAddr"]:
            try:
                _write(f"{_MEMORY}/probe", f"{address:#x}")
            except FileNotFoundError:
                text = "this kernel has no memory probe interface"
                raise TtrpcError(status.UNIMPLEMENTED, text) from None

    async def reseed(self, request: Message) -> None:
        """ReseedRandomDev."""
        data = request["data"]
        fd = os.open("/dev/random", os.O_RDWR | os.O_CLOEXEC)
        try:
            counts = (len(data) * 8).to_bytes(4, byteorder) + len(data).to_bytes(4, byteorder)
            fcntl.ioctl(fd, RNDADDENTROPY, counts + data)
            fcntl.ioctl(fd, RNDRESEEDCRNG)
        finally:
            os.close(fd)

    async def add_swap(self, request: Message) -> None:
        """AddSwap."""
        path = "/".join(f"{slot:02x}" for slot in request["PCIPath"])
        libc.swapon(await block.find(self._loop, "blk", path))

    async def add_swap_path(self, request: Message) -> None:
        """AddSwapPath: a node, or as an extension a CCW id or a SCSI address."""
        path = request["path"]
        kind = "blk-ccw" if block.is_ccw(path) else "scsi" if ":" in path else "mmioblk"
        libc.swapon(await block.find(self._loop, kind, path))

    async def metrics(self, _request: Message) -> Mapping[str, Any]:
        """GetMetrics: the agent process and the guest, in Prometheus's text format."""
        lines: list[str] = []
        for name, value in _agent_figures().items():
            _add_metric(lines, f"kata_agent_{name}", [("", value)])
        load = _read("/proc/loadavg").split()
        _add_metric(
            lines,
            "kata_guest_load",
            [(f'{{item="load{n}"}}', float(v)) for n, v in zip((1, 5, 15), load[:3], strict=True)],
        )
        memory = [
            (f'{{item="{key.lower()}"}}', int(rest.split()[0]))
            for key, _, rest in (line.partition(":") for line in _lines("/proc/meminfo"))
        ]
        _add_metric(lines, "kata_guest_meminfo", memory)
        times = [
            (f'{{cpu="{cpu}",item="{item}"}}', int(value))
            for cpu, *values in (row.split() for row in _lines("/proc/stat") if row[:3] == "cpu")
            for item, value in zip(_CPU_TIMES, values, strict=False)
        ]
        _add_metric(lines, "kata_guest_cpu_time", times)
        return {"metrics": "\n".join(lines) + "\n"}


def _limits() -> list[str]:
    """Limits of the kernel that not every one has: hugetlb-2MB, hugetlb-1GB, io-weight."""
    found = ["io-weight"] if os.path.exists(_IO_COST) else []
    try:
        names = os.listdir(_HUGE_PAGES)
    except FileNotFoundError:
        return found
    for name in names:  # hugepages-2048kB
        size = int(name.rpartition("-")[2].removesuffix("kB")) >> 10
        found.append(f"hugetlb-{size >> 10}GB" if size >= 1024 else f"hugetlb-{size}MB")
    return found


_CPU_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def _agent_figures() -> dict[str, float]:
    fields = _read("/proc/self/stat").rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        "process_cpu_seconds_total": (int(fields[11]) + int(fields[12])) / ticks,
        "threads": int(fields[17]),
        "process_virtual_memory_bytes": int(fields[20]),
        "process_resident_memory_bytes": int(fields[21]) * page,
        "process_open_fds": len(os.listdir("/proc/self/fd")),
    }


def _add_metric(lines: list[str], name: str, samples: Iterable[tuple[str, float]]) -> None:
    lines.append(f"# TYPE {name} gauge")
    lines += [f"{name}{labels} {value}" for labels, value in samples]


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def _lines(path: str) -> list[str]:
    return _read(path).splitlines()


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def _set_online(folder: str, prefix: str) -> int:
    """Put what is offline online; gives how many that were."""
    count = 0
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = f"{folder}/{name}/online"
        if name.startswith(prefix) and _read(path) == "0":
            _write(path, "1")
            count += 1
    return count
