"""The guest kernel on QEMU's command line, with the arguments the machine needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import cmdline
from vmm.arch import architecture
from vmm.errors import InvalidConfig

if TYPE_CHECKING:
    from vmm.qemu.accel import Accelerator
    from vmm.spec import VmSpec

_MAX_ARGUMENT = 2047  # bytes of kernel command line on x86


def kernel_arguments(spec: VmSpec, accelerator: Accelerator, tsc_khz: int) -> list[str]:
    """Return the options for kernel, initial ramdisk and kernel arguments.

    Raises:
        InvalidConfig: the kernel's arguments are too long.
    """
    line = kernel_cmdline(spec, accelerator, tsc_khz)
    if len(line.encode()) > _MAX_ARGUMENT:
        raise InvalidConfig(f"the kernel command line is over {_MAX_ARGUMENT} bytes: {line}")
    initrd = [] if spec.initrd is None else ["-initrd", str(spec.initrd)]
    return ["-kernel", str(spec.kernel), *initrd, "-append", line]


def kernel_cmdline(spec: VmSpec, accelerator: Accelerator, tsc_khz: int) -> str:
    """Return the caller's kernel arguments and those the machine needs besides."""
    # A reset ends the VM, so a panicked or rebooting guest must really reset.
    wanted = {"panic": "-1", "reboot": "t"}
    if accelerator.name == "tcg":
        # Self-tests of every cipher take a third of a second under emulation.
        wanted["cryptomgr.notests"] = ""
        if architecture(spec.arch).name == "x86_64":
            # On a busy host too few ticks come in the time of its own loop, and it panics. A
            # guest of KVM leaves this check out by itself.
            wanted["no_timer_check"] = ""
        if tsc_khz:
            wanted["tsc_early_khz"] = str(tsc_khz)
    if spec.iommu:
        wanted |= {"intel_iommu": "on", "iommu": "pt"}
    return cmdline.merge(spec, wanted)
