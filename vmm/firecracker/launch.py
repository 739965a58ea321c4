"""Start Firecracker: check, plan, make pipes, spawn. Standard library only; blocking."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig
from vmm.firecracker.features import Features
from vmm.firecracker.plan import Plan, make_plan
from vmm.pipes import make_fifo
from vmm.sockets import check_length
from vmm.spawn import spawn
from vmm.spec import BalloonDevice, VsockDevice
from vmm.version import ask_version, find_program

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from vmm.hypervisor import Capabilities, Recorder
    from vmm.spec import VmSpec

API_SOCKET = "api.sock"
VSOCK_SOCKET = "vsock.sock"
CONSOLE_PIPE = "console"
LOG_PIPE = "log"
METRICS_PIPE = "metrics"
PLACEHOLDER = "placeholder"
_PLACEHOLDER_BYTES = 4096


@dataclass
class Started:
    """A Firecracker process that was just started.

    Args:
        child: the process.
        plan: its devices, placed.
        capabilities: what this VM can do.
        api: its API's socket.
        vsock: its hybrid vsock's socket, and how it sees that itself.
        console: our end of the console's pipe; None when stdout is the console.
        log: our end of the log's pipe; None when stdout is the log.
        metrics: our end of the metrics' pipe.
        inside: pipes and sockets as Firecracker sees them, by their name here.
        paths: what to remove afterwards.
    """

    child: subprocess.Popen[bytes]
    plan: Plan
    capabilities: Capabilities
    api: Path
    vsock: Path
    console: int | None
    log: int | None
    metrics: int
    inside: dict[str, str]
    paths: list[Path]


def probe(binary: str | Path, *, pci: bool) -> tuple[Path, Features]:
    """Return the program and what it has.

    Raises:
        InvalidConfig: there is none, it does not run, or it is too old.
    """
    program = find_program(binary, "firecracker", "path in [hypervisor.firecracker]")
    features = Features(ask_version(program), pci)
    features.check()
    return program, features


def capabilities(spec: VmSpec, plan: Plan) -> Capabilities:
    """Return what a VM of this spec can do: the version's features that it asked for."""
    found = plan.features.capabilities()
    why_not = dict(found.why_not)
    balloons = [device for device in spec.devices if isinstance(device, BalloonDevice)]
    if not balloons:
        why_not["balloon"] = "a BalloonDevice in the spec"
    if not plan.hot_memory_bytes and found.mem_up:
        why_not["mem_up"] = why_not["mem_down"] = "max_memory_bytes over memory_bytes"
    swap = found.block_hot == "swap" and not plan.pool
    if swap:
        why_not["block_hot"] = "hotplug_slots over 0, and a free device number"
    return replace(
        found,
        block_hot="none" if swap else found.block_hot,
        mem_up=bool(plan.hot_memory_bytes),
        mem_down=bool(plan.hot_memory_bytes),
        mem_max=spec.memory_bytes + plan.hot_memory_bytes,
        balloon=bool(balloons),
        free_page_reporting=found.free_page_reporting
        and any(balloon.free_page_reporting for balloon in balloons),
        console=spec.console,
        hugepages=spec.hugepages,
        seccomp=spec.sandbox_seccomp,
        why_not=why_not,
    )


def launch(
    spec: VmSpec,
    *,
    binary: str | Path,
    pci: bool,
    record: Recorder,
) -> Started:
    """Start Firecracker, with nothing configured yet.

    Args:
        spec: the VM.
        binary: program or its name; empty takes ``firecracker``.
        pci: start it with PCI.
        record: told of each socket and file before it is made, and of the process.

    Raises:
        InvalidConfig, Unsupported: the spec is wrong, or this version can't run it.
        Conflict, LimitExceeded: its devices don't fit.
    """
    program, features = probe(binary, pci=pci)
    directory = spec.runtime_dir
    outside = {
        name: directory / name
        for name in (API_SOCKET, VSOCK_SOCKET, CONSOLE_PIPE, LOG_PIPE, METRICS_PIPE, PLACEHOLDER)
    }
    for device in spec.devices:
        if isinstance(device, VsockDevice) and device.uds is not None:
            outside[VSOCK_SOCKET] = device.uds
    check_length(outside[API_SOCKET])
    check_length(outside[VSOCK_SOCKET])
    inside = {name: str(path) for name, path in outside.items()}
    plan = make_plan(spec, features, map_path=str, placeholder=inside[PLACEHOLDER])
    # Before 1.14 the console is stdout, so the log must not be.
    has_serial = features.has("serial_out")
    with ExitStack() as undo:
        paths: list[Path] = []

        def claim(name: str, kind: str) -> Path:
            path = outside[name]
            record(kind, str(path))
            paths.append(path)
            undo.callback(_unlink, path)
            _unlink(path)
            return path

        def pipe(name: str) -> int:
            fd = make_fifo(claim(name, "file"))
            undo.callback(_close, fd)
            return fd

        claim(API_SOCKET, "socket")
        claim(VSOCK_SOCKET, "socket")
        console = pipe(CONSOLE_PIPE) if has_serial and spec.console else None
        log = None if has_serial else pipe(LOG_PIPE)
        metrics = pipe(METRICS_PIPE)
        if plan.pool:
            _write_placeholder(claim(PLACEHOLDER, "file"))
        argv = _arguments(spec, features, inside, separate_log=log is not None)
        child = spawn([str(program), *argv, *spec.extra_args], netns=spec.netns)
        undo.callback(child.kill)
        record("process", child.pid)
        undo.pop_all()
    return Started(
        child,
        plan,
        capabilities(spec, plan),
        outside[API_SOCKET],
        outside[VSOCK_SOCKET],
        console,
        log,
        metrics,
        inside,
        paths,
    )


def _arguments(
    spec: VmSpec, features: Features, inside: dict[str, str], *, separate_log: bool
) -> Sequence[str]:
    arguments = ["--api-sock", inside[API_SOCKET], "--id", vm_id(spec.name)]
    if features.pci:
        arguments.append("--enable-pci")
    if not spec.sandbox_seccomp:
        arguments.append("--no-seccomp")
    if separate_log:
        arguments += ["--log-path", inside[LOG_PIPE]]
    return arguments


def vm_id(name: str) -> str:
    """Return an id as Firecracker wants it: 1 to 64 letters, digits and hyphens.

    A name that is none is told apart from all others by its hash.
    """
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in name)
    if plain == name and 1 <= len(name) <= 64:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{plain[:47]}-{digest}"


def _write_placeholder(path: Path) -> None:
    try:
        with path.open("xb") as file:
            file.truncate(_PLACEHOLDER_BYTES)
    except OSError as error:
        raise InvalidConfig(f"can't write {path}: {error.strerror}") from error


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)
