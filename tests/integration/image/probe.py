"""Stands in for the agent in an image under test: looks around, tells on the console, ends.

Runs in the guest, so it uses nothing but what the image has.
"""

from __future__ import annotations

import contextlib
import os
import time

from guest_agent import boot, libc

_DRIVERS_DEADLINE = 60.0
_LIST = "/usr/lib/katapy/modules"
_KVM_ONLY = {"ptp_kvm"}  # refuses to load under TCG


def main() -> None:
    """Print facts as ``PROBE key value`` lines and switch the machine off."""
    boot.mount_all()
    boot.prepare()
    _tell("uptime", _read("/proc/uptime").split()[0])
    _tell("pid", os.getpid())
    _tell("release", os.uname().release)
    memory = {line.split(":")[0]: int(line.split()[1]) for line in _lines("/proc/meminfo")}
    _tell("used_kib", memory["MemTotal"] - memory["MemAvailable"])
    for line in _lines("/proc/self/mounts"):
        source, target, kind, options = line.split()[:4]
        _tell("mount", f"{target} {kind} {options.split(',')[0]}")
        if target == "/":
            _tell("root", f"{source} {options}")
    _tell("crun", os.popen("crun --version").readline().strip())
    _tell("drivers", " ".join(_missing_drivers()))
    os.mkdir("/tmp/xfs")
    # It's no xfs; but the kernel has to get the driver to know that.
    with contextlib.suppress(OSError):
        libc.mount("/dev/vda", "/tmp/xfs", "xfs", libc.MS_RDONLY)
    _tell("xfs", "xfs" in _read("/proc/filesystems"))
    boot.end()


def _missing_drivers() -> set[str]:
    """Wait for the drivers that are loaded behind the agent; return those that don't come."""
    if not os.path.exists(_LIST):
        return set()
    wanted = {path.rsplit("/", 1)[1].split(".")[0].replace("-", "_") for path in _lines(_LIST)}
    wanted -= _KVM_ONLY
    deadline = time.monotonic() + _DRIVERS_DEADLINE
    while True:
        missing = wanted - {line.split()[0] for line in _lines("/proc/modules")}
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.1)


def _tell(key: str, value: object) -> None:
    os.write(1, f"PROBE {key} {value}\n".encode())


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _lines(path: str) -> list[str]:
    return _read(path).splitlines()
