"""The guest kernel on QEMU's command line, with the arguments the machine needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.arch import architecture
from vmm.errors import InvalidConfig
from vmm.qemu.memory import hot_memory_bytes
from vmm.spec import PmemDevice

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
    """Return the caller's kernel arguments and those the machine needs besides.

    An argument that the caller gave is left as it is. What follows ``--`` goes to init.
    """
    kernel_part, dashes, init_part = f"{spec.cmdline} ".partition(" -- ")
    words = kernel_part.split()
    given = {word.partition("=")[0] for word in words}
    wanted = {
        # A reset ends the VM, so a panicked or rebooting guest must really reset.
        "panic": "-1",
        "reboot": "t",
        "katapy.channel": spec.channel,
    }
    if spec.console:
        wanted["console"] = architecture(spec.arch).console
    if spec.image is not None:
        wanted["root"] = "/dev/pmem0" if isinstance(spec.image, PmemDevice) else "/dev/vda"
    if accelerator.name == "tcg":
        # Self-tests of every cipher take a third of a second under emulation.
        wanted["cryptomgr.notests"] = ""
        if tsc_khz:
            wanted["tsc_early_khz"] = str(tsc_khz)
    if spec.iommu:
        wanted |= {"intel_iommu": "on", "iommu": "pt"}
    if hot_memory_bytes(spec):
        wanted["memhp_default_state"] = "online_movable"  # so that it can be unplugged
    words += [f"{k}={v}" if v else k for k, v in wanted.items() if k not in given]
    if "root" not in given and spec.image is not None and not given & {"ro", "rw"}:
        words.append("ro" if spec.image.read_only else "rw")
    return " ".join(words) + (f"{dashes}{init_part}".rstrip() if dashes else "")
