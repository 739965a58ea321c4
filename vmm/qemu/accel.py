"""Which accelerator works here: KVM, or emulation.

``/dev/kvm`` may exist, open and even create VMs on hosts that can't run a stock guest,
so KVM counts as there only when a one-instruction guest has really run.
Standard library only.

Source: Linux Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from vmm.arch import Architecture, host_architecture
from vmm.errors import InvalidConfig

logger = logging.getLogger(__name__)

_KVM_API_VERSION = 12
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_CREATE_VCPU = 0xAE41
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46
_KVM_RUN = 0xAE80
_KVM_SET_REGS = 0x4090AE82
_KVM_GET_SREGS = 0x8138AE83
_KVM_SET_SREGS = 0x4138AE84
_KVM_EXIT_HLT = 5
_EXIT_REASON_OFFSET = 8
_HLT = b"\xf4"


@dataclass(frozen=True)
class Accelerator:
    """The accelerator to use.

    Args:
        name: as QEMU spells it.
        why_not_kvm: what is missing for KVM; empty when it works.
    """

    name: Literal["kvm", "tcg"]
    why_not_kvm: str = ""


def choose(wanted: Literal["auto", "kvm", "tcg"], arch: Architecture) -> Accelerator:
    """Return the accelerator for a VM; emulation instead of KVM is warned about once.

    Args:
        wanted: what is configured.
        arch: the guest's architecture.

    Raises:
        InvalidConfig: KVM is wanted and does not work.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "not wanted")
    if arch.name != host_architecture():
        if wanted == "kvm":
            raise InvalidConfig(f"KVM can't run a {arch.name} guest on {host_architecture()}")
        return Accelerator("tcg", f"a {arch.name} guest on {host_architecture()}")
    found = detect()
    if wanted == "kvm" and found.name != "kvm":
        raise InvalidConfig(f"KVM is configured but does not work here: {found.why_not_kvm}")
    return found


@lru_cache(maxsize=1)
def detect() -> Accelerator:
    """Find out whether KVM works; asked once a process (a few milliseconds)."""
    problem = _missing_cpu_flag() or _smoke_test()
    if problem:
        logger.warning("no KVM (%s): VMs run under emulation, many times slower", problem)
        return Accelerator("tcg", problem)
    return Accelerator("kvm")


def _missing_cpu_flag(path: str = "/proc/cpuinfo") -> str:
    if os.uname().machine != "x86_64":
        return ""
    flags: set[str] = set()
    with open(path) as file:
        for line in file:
            if line.startswith("flags"):
                flags.update(line.split(":", 1)[1].split())
                break
    return "" if flags & {"vmx", "svm"} else "the CPU shows neither vmx nor svm"


def _smoke_test() -> str:
    """Run one HLT in a VM of one page; return what went wrong."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    fds = [kvm]
    try:
        version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API_VERSION:
            return f"/dev/kvm speaks API version {version}"
        fds.append(vm := fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
        if os.uname().machine != "x86_64":
            return ""
        return _run_hlt(kvm, vm, fds)
    except OSError as error:
        return f"a test VM failed: {error.strerror}"
    finally:
        for fd in reversed(fds):
            os.close(fd)


def _run_hlt(kvm: int, vm: int, fds: list[int]) -> str:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[: len(_HLT)] = _HLT
        anchor = ctypes.c_char.from_buffer(page)
        region = struct.pack("IIQQQ", 0, 0, 0, mmap.PAGESIZE, ctypes.addressof(anchor))
        del anchor
        fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, region)
        fds.append(vcpu := fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0))
        sregs = bytearray(0x138)
        fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
        # The first segment in the structure is cs: u64 base, u32 limit, u16 selector.
        struct.pack_into("Q", sregs, 0, 0)
        struct.pack_into("H", sregs, 12, 0)
        fcntl.ioctl(vcpu, _KVM_SET_SREGS, bytes(sregs))
        # 16 general registers, rip, rflags (bit 1 is always set): start at address 0.
        fcntl.ioctl(vcpu, _KVM_SET_REGS, struct.pack("18Q", *([0] * 17), 2))
        size = fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE, 0)
        with mmap.mmap(vcpu, size) as run:
            fcntl.ioctl(vcpu, _KVM_RUN, 0)
            (reason,) = struct.unpack_from("I", run, _EXIT_REASON_OFFSET)
    return "" if reason == _KVM_EXIT_HLT else f"a test VM stopped with exit reason {reason}"
