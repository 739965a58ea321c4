"""Takes the place of shim/daemon.py: the real one, whose steps can be made to fail.

The file that KATAPY_TEST_FAULT names says which step is to fail next: its name, or
``ledger N`` for the N-th entry from now on. After ``die`` the process is killed there
instead, after ``die after`` when the step is done. The file is taken away when that
happened.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from shim import backends
from shim.agent import Agent
from shim.cleanup.ledger import Ledger
from shim.context import ShimContext
from shim.errors import ResourceExhausted
from shim.net import open_network
from shim.pod import builder as pod_builder
from shim.pod import creation, sandbox
from shim.pod import vm as pod_vm
from shim.pod.builder import PodBuilder
from shim.pod.container_files import ContainerFiles
from shim.storage import share
from shim.storage.share import Share
from vmm import virtiofsd
from vmm.cloud_hypervisor import launch as clh_launch
from vmm.firecracker import launch as firecracker_launch
from vmm.qemu import launch
from vmm.qemu.qemu import QemuHypervisor

STEPS: tuple[tuple[object, str, str], ...] = (
    # Before the VM
    (sandbox, "open_stdio", "stdio"),
    (PodBuilder, "_make_runtime_dir", "runtime directory"),
    (PodBuilder, "_make_cgroup", "cgroup"),
    (open_network, "open_netns", "network namespace"),
    (pod_builder, "plan_vm", "plan"),
    (Share, "prepare", "share"),
    (share, "mount", "share mount"),
    (backends, "run_virtiofsd", "virtiofsd"),
    (virtiofsd, "spawn", "virtiofsd process"),
    (QemuHypervisor, "__aenter__", "VMM"),
    (launch, "spawn", "VMM process"),
    (firecracker_launch, "spawn", "VMM process"),
    (clh_launch, "spawn", "VMM process"),
    # The VM
    (QemuHypervisor, "boot", "boot"),
    (QemuHypervisor, "dial_agent", "agent dial"),
    (pod_vm, "connect", "agent connection"),
    (Agent, "create_sandbox", "CreateSandbox"),
    # The container
    (ContainerFiles, "add_rootfs", "rootfs"),
    (share, "bind", "rootfs bind"),
    (QemuHypervisor, "attach", "disk"),
    (ContainerFiles, "add_volumes", "volumes"),
    (Share, "add_volume", "volume"),
    (creation, "guest_spec", "guest spec"),
    (Agent, "create_container", "CreateContainer"),
    (sandbox.Sandbox, "supervise", "supervision"),
)


def main(context: ShimContext) -> None:
    control = Path(os.environ["KATAPY_TEST_FAULT"])
    for owner, attribute, step in STEPS:
        setattr(owner, attribute, _faulty(getattr(owner, attribute), step, control))
    _fail_ledger(control)
    # The real one, as the installation of the tests names it.
    importlib.import_module("shim.real_daemon").main(context)


def _faulty(call: Callable[..., Any], step: str, control: Path) -> Callable[..., Any]:
    def strike(when: str = "") -> None:
        wanted = _wanted(control)
        if wanted == f"die {when}{step}":
            control.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if wanted == when + step:
            control.unlink()
            raise ResourceExhausted(f"made to fail: {step}")

    if iscoroutinefunction(call):

        @functools.wraps(call)
        async def wait(*positional: Any, **named: Any) -> Any:
            strike()
            result = await call(*positional, **named)
            strike("after ")
            return result

        return wait

    @functools.wraps(call)
    def run(*positional: Any, **named: Any) -> Any:
        strike()
        result = call(*positional, **named)
        strike("after ")
        return result

    return run


def _fail_ledger(control: Path) -> None:
    write = Ledger._write

    def faulty(self: Ledger, entries: dict[int, Any]) -> None:
        before, found, number = _wanted(control).partition("ledger ")
        if found and len(entries) > len(self.entries()):
            if number == "1":
                control.unlink()
                if before == "die ":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(28, os.strerror(28))
            control.write_text(f"{before}ledger {int(number) - 1}")
        write(self, entries)

    Ledger._write = faulty  # type: ignore[method-assign]


def _wanted(control: Path) -> str:
    try:
        return control.read_text()
    except FileNotFoundError:
        return ""
