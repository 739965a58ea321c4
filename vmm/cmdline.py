"""The guest's kernel arguments: the caller's, and those a VM needs besides. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.arch import architecture
from vmm.spec import PmemDevice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.spec import VmSpec


def merge(spec: VmSpec, wanted: Mapping[str, str]) -> str:
    """Return the kernel command line.

    An argument that the caller gave is left as it is. What follows ``--`` goes to init.

    Args:
        spec: the VM, with the caller's arguments.
        wanted: arguments by name; an empty value stands for the name alone.
    """
    kernel_part, dashes, init_part = f"{spec.cmdline} ".partition(" -- ")
    words = kernel_part.split()
    given = {word.partition("=")[0] for word in words}
    wanted = {**wanted, "katapy.channel": spec.channel}
    if spec.console:
        wanted["console"] = architecture(spec.arch).console
    if spec.image is not None:
        wanted["root"] = "/dev/pmem0" if isinstance(spec.image, PmemDevice) else "/dev/vda"
    if spec.memory_limit > spec.memory_bytes:
        wanted["memhp_default_state"] = "online_movable"  # so that it can be unplugged
    words += [f"{k}={v}" if v else k for k, v in wanted.items() if k not in given]
    if "root" not in given and spec.image is not None and not given & {"ro", "rw"}:
        words.append("ro" if spec.image.read_only else "rw")
    return " ".join(words) + (f"{dashes}{init_part}".rstrip() if dashes else "")
