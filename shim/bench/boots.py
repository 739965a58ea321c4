"""A VM by itself: the kernel to its first program, and the guest image to its agent."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from shim import agent_session
from shim.bench.busybox import busybox_archive
from shim.bench.figures import KATAPY, Figures
from shim.bench.world import World
from shim.config.hypervisors import Qemu
from shim.config.model import Config
from shim.errors import DeadlineExceeded, FailedPrecondition
from shim.pod.vm_plan import needs_vsock, plan_vm
from vmm.events import ConsoleLine
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import FsDevice, NinePDevice, VmSpec


@dataclass(frozen=True, slots=True)
class Seen:
    """What a boot showed: when it was over, the agent's stamps in µs, memory in use in MiB."""

    at: float
    stamps: Mapping[str, int] = field(default_factory=dict)
    used: float | None = None


Until = Callable[[QemuHypervisor], Awaitable[Seen]]

_TIMEOUT = 90.0
_MARKER = "katapy-bench: init runs"
_MEMORY = re.compile(r'^kata_guest_meminfo{item="(mem_total|mem_free)"} (\d+)', re.MULTILINE)
_INIT = f"#!/bin/busybox sh\necho '{_MARKER}'\nexec /bin/busybox sleep 600\n"


def measure(world: World, config: Config, figures: Figures) -> None:
    """Boot the same VM twice: with an init that says one line, and with the guest image.

    Only QEMU's, and without a vsock, which wants a daemon beside it.
    """
    if not isinstance(config.hypervisor, Qemu) or needs_vsock(config):
        return
    lines: tuple[tuple[str, str, Until], ...] = (
        ("boot_init", "QEMU and the kernel alone, to init", _init_runs),
        ("boot_agent", "QEMU and the guest image, to the agent's answer", _agent_answers),
    )
    for key, title, until in lines:
        seconds, seen = trio.run(_boot, world, config, until)
        figures.add(key, title, "s", KATAPY, seconds)
        if seen.used is not None:
            title = "memory not free in the guest, after boot"
            figures.add("guest_used_boot", title, "MiB", KATAPY, seen.used)
        for name, microseconds in sorted(seen.stamps.items(), key=lambda item: item[1]):
            title = f"  by the guest's clock, up to: {name}"
            figures.add(f"guest_{name}", title, "s", KATAPY, microseconds / 1e6)


async def _boot(world: World, config: Config, until: Until) -> tuple[float, Seen]:
    with tempfile.TemporaryDirectory(dir=world.folder, prefix="b") as name:
        spec = plan_vm(config, name="katapy-bench", runtime_dir=Path(name), netns=None).spec
        # The shared directory is the pod's; the VM is the same but for it.
        devices = tuple(d for d in spec.devices if not isinstance(d, (FsDevice, NinePDevice)))
        spec = replace(spec, devices=devices)
        if until is _init_runs:
            spec = _with_init(spec, Path(name))
        vm = QemuHypervisor(
            spec, binary=config.hypervisor.path or "", cache_dir=config.katapy.cache_dir
        )
        try:
            with trio.fail_after(world.deadline.limit(_TIMEOUT)):
                begin = time.perf_counter()
                async with vm:
                    seen = await until(vm)
                    return seen.at - begin, seen
        except trio.TooSlowError:
            last = " | ".join(vm.console_tail()[-3:])
            raise DeadlineExceeded(f"the VM did not come up; last console lines: {last}") from None
    raise AssertionError("unreachable")


async def _init_runs(vm: QemuHypervisor) -> Seen:
    with vm.subscribe() as events:
        await vm.boot()
        async for event in events:
            if isinstance(event, ConsoleLine) and _MARKER in event.line:
                return Seen(time.perf_counter())
    raise FailedPrecondition(f"the VM ended before its init ran: {vm.exit_reason}")


async def _agent_answers(vm: QemuHypervisor) -> Seen:
    await vm.boot()
    async with agent_session.connect(await vm.dial_agent(_TIMEOUT), _TIMEOUT) as answering:
        answered = time.perf_counter()
        memory = {name: int(value) for name, value in _MEMORY.findall(await answering.metrics())}
        used = (memory["mem_total"] - memory["mem_free"]) / 2**20
        return Seen(answered, answering.boot_stamps, used)


def _with_init(spec: VmSpec, folder: Path) -> VmSpec:
    initrd = folder / "initrd"
    initrd.write_bytes(busybox_archive("init", _INIT))
    return replace(spec, initrd=initrd, cmdline=f"{spec.cmdline} rdinit=/init")
