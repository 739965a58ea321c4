"""Start Cloud Hypervisor: check, plan, sockets, pipes, spawn. Standard library only; blocking."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm.cloud_hypervisor.features import MEM_ALIGNMENT, Features
from vmm.cloud_hypervisor.plan import Plan, make_plan
from vmm.pipes import enlarge, make_fifo
from vmm.sockets import check_length, listen
from vmm.spawn import spawn
from vmm.spec import BalloonDevice, PanicDevice, VsockDevice
from vmm.version import ask_version, find_program

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from vmm.hypervisor import Capabilities, Recorder
    from vmm.spec import VmSpec

API_SOCKET = "api.sock"
VSOCK_SOCKET = "vsock.sock"
CONSOLE_PIPE = "console"


@dataclass
class Started:
    """A Cloud Hypervisor process that was just started; it has no VM yet.

    Args:
        child: the process.
        plan: its devices.
        capabilities: what this VM can do.
        api: the listening socket it was given.
        vsock: where its hybrid vsock will listen.
        console: path of the console's pipe, and our end of it; None for no console.
        events: our end of the event stream.
        paths: what to remove afterwards.
    """

    child: subprocess.Popen[bytes]
    plan: Plan
    capabilities: Capabilities
    api: Path
    vsock: Path
    console: tuple[Path, int] | None
    events: int
    paths: list[Path]


def probe(binary: str | Path) -> tuple[Path, Features]:
    """Return the program and what it has.

    Raises:
        InvalidConfig: there is none, it does not run, or it is too old.
    """
    program = find_program(binary, "cloud-hypervisor", "path in [hypervisor.clh]")
    features = Features(ask_version(program))
    features.check()
    return program, features


def capabilities(spec: VmSpec, plan: Plan, *, landlock: bool) -> Capabilities:
    """Return what a VM of this spec can do: the version's features that it asked for."""
    found = plan.features.capabilities()
    why_not = dict(found.why_not)
    balloons = [device for device in spec.devices if isinstance(device, BalloonDevice)]
    grows = spec.vcpu_limit > spec.vcpus
    hot_memory = bool(plan.hot_memory_bytes)
    virtio_mem = spec.memory_hotplug == "virtio-mem"
    if not balloons:
        why_not["balloon"] = "a BalloonDevice in the spec"
    if not grows:
        why_not["vcpu_up"] = why_not["vcpu_down"] = "max_vcpus over vcpus"
    why_not["mem_up"] = "max_memory_bytes over memory_bytes"
    why_not["mem_down"] = why_not["mem_up"] if virtio_mem else "virtio-mem in place of DIMMs"
    why_not["fs_hot"] = "shared_memory"
    why_not["jail"] = "landlock"
    why_not["hugepages"] = "hugepages in the spec"
    why_not["seccomp"] = "sandbox_seccomp in the spec"
    why_not["free_page_reporting"] = "a BalloonDevice with it in the spec"
    why_not["guest_panic_event"] = "a PanicDevice in the spec"
    return replace(
        found,
        fs_hot=spec.needs_shared_memory,
        vcpu_up=grows,
        vcpu_down=grows,
        mem_up=hot_memory,
        mem_down=hot_memory and virtio_mem,
        mem_granule=found.mem_granule if virtio_mem else MEM_ALIGNMENT,
        mem_max=spec.memory_bytes + plan.hot_memory_bytes,
        balloon=bool(balloons),
        free_page_reporting=any(balloon.free_page_reporting for balloon in balloons),
        console=spec.console,
        hugepages=spec.hugepages,
        guest_panic_event=any(isinstance(device, PanicDevice) for device in spec.devices),
        jail=landlock,
        seccomp=spec.sandbox_seccomp,
        why_not=why_not,
    )


def launch(spec: VmSpec, *, binary: str | Path, landlock: bool, record: Recorder) -> Started:
    """Start Cloud Hypervisor without a VM.

    Args:
        spec: the VM.
        binary: program or its name; empty takes ``cloud-hypervisor``.
        landlock: whether the VM will be confined.
        record: told of each socket and file before it is made, and of the process.

    Raises:
        InvalidConfig, Unsupported: the spec is wrong, or this version can't run it.
        Conflict, LimitExceeded: its devices don't fit.
    """
    program, features = probe(binary)
    plan = make_plan(spec, features)
    api, vsock = spec.runtime_dir / API_SOCKET, spec.runtime_dir / VSOCK_SOCKET
    for device in spec.devices:
        if isinstance(device, VsockDevice) and device.uds is not None:
            vsock = device.uds
    check_length(vsock)
    with ExitStack() as undo, ExitStack() as close_ours:
        paths: list[Path] = []

        def claim(path: Path, kind: str) -> None:
            record(kind, str(path))
            paths.append(path)
            undo.callback(_unlink, path)
            _unlink(path)

        claim(api, "socket")
        listener = close_ours.enter_context(listen(api))
        claim(vsock, "socket")
        console = None
        if spec.console:
            pipe = spec.runtime_dir / CONSOLE_PIPE
            claim(pipe, "file")
            console = (pipe, make_fifo(pipe))
            undo.callback(os.close, console[1])
        events, theirs = os.pipe2(os.O_CLOEXEC)
        undo.callback(os.close, events)
        close_ours.callback(os.close, theirs)
        enlarge(events)
        argv = [
            str(program),
            *("--api-socket", f"fd={listener.fileno()}"),
            *("--event-monitor", f"fd={theirs}"),
            *("--seccomp", "true" if spec.sandbox_seccomp else "false"),
            *spec.extra_args,
        ]
        # All it is told of comes by descriptor or over the API, so nothing in its command
        # line says whose it is.
        child = spawn(
            argv,
            pass_fds=(listener.fileno(), theirs),
            netns=spec.netns,
            marker=str(spec.runtime_dir),
        )
        undo.callback(child.kill)
        record("process", child.pid)
        undo.pop_all()
    caps = capabilities(spec, plan, landlock=landlock)
    return Started(child, plan, caps, api, vsock, console, events, paths)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
