"""Boots an image that holds the probe and collects what the probe tells."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import trio

from vmm.image.store import GuestImage
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import BlockDevice, PmemDevice, VmSpec

_DEADLINE = 180.0


async def run_probe(
    image: GuestImage,
    machine: str,
    runtime_dir: Path,
    root: BlockDevice | PmemDevice | None = None,
    arguments: str = "",
) -> dict[str, list[str]]:
    """Return what the probe told, by its keys.

    Args:
        image: an image with the probe.
        machine: the machine it is booted on.
        runtime_dir: short directory for sockets.
        root: the image as a device; None for a disk.
        arguments: further kernel arguments.
    """
    spec = VmSpec(
        kernel=image.kernel,
        initrd=image.initrd,
        image=root or BlockDevice("root", image.rootfs, read_only=True, shared=True),
        cmdline=f"{image.kernel_args} quiet {arguments}",
        machine=machine,
        runtime_dir=runtime_dir,
        accel="tcg",
    )
    async with QemuHypervisor(spec, cache_dir=runtime_dir) as vm:
        await vm.boot()
        with trio.move_on_after(_DEADLINE):
            await vm.exited.wait()
        lines = vm.console_tail()
    told: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if match := re.search(r"PROBE (\w+) ?(.*)", line):
            told[match[1]].append(match[2].strip())
    assert "xfs" in told, "the probe did not get to its end:\n" + "\n".join(lines)
    return told
