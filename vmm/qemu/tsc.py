"""The rate of the host's time-stamp counter, which emulated guests see as theirs.

An emulated guest on a loaded host fails to calibrate its own (microvm then hangs), so
it is told by ``tsc_early_khz=``. The rate is measured, as ``/proc/cpuinfo`` shows the
clock of the moment on many hosts, and cached for as long as the host stays up.
Standard library only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
_WINDOW_S = 0.02
_TRIES = 20


def host_tsc_khz(cache_dir: Path | None = None) -> int:
    """Return the counter's rate in kHz; 0 where there is none or it can't be read.

    Args:
        cache_dir: where the figure is kept for this boot of the host.
    """
    if os.uname().machine != "x86_64":
        return 0
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    file = cache_dir / "tsc-khz" if cache_dir is not None else None
    if file is not None:
        try:
            known_boot, khz = file.read_text().split()
            if known_boot == boot:
                return int(khz)
        except (OSError, ValueError):
            pass
    measured = _measure() or _from_cpuinfo()
    if file is not None and measured:
        _store(file, f"{boot} {measured}")
    return measured


def _measure() -> int:
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0  # a host policy forbids executable data
    code.write(_RDTSC)
    anchor = ctypes.c_char.from_buffer(code)
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
    start, start_tsc = _paired_reading(rdtsc)
    time.sleep(_WINDOW_S)
    end, end_tsc = _paired_reading(rdtsc)
    del anchor, rdtsc
    code.close()
    return round((end_tsc - start_tsc) * 1_000_000 / (end - start))


def _paired_reading(rdtsc: Callable[[], int]) -> tuple[int, int]:
    """Return clock (ns) and counter of one moment: the closest of several tries."""
    tries: list[tuple[int, int, int]] = []
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        ticks = rdtsc()
        after = time.monotonic_ns()
        tries.append((after - before, (before + after) // 2, ticks))
    _, clock, ticks = min(tries)
    return clock, ticks


def _from_cpuinfo() -> int:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("cpu MHz"):
                return round(float(line.split(":")[1]) * 1000)
    return 0


def _store(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)  # only a cache
