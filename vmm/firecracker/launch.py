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
from vmm.firecracker.jail import Jail, Jailer
from vmm.firecracker.plan import Inside, Plan, boot_requests, make_plan
from vmm.pipes import make_fifo
from vmm.sockets import check_length
from vmm.spawn import spawn
from vmm.spec import BalloonDevice, BlockDevice, PmemDevice, VsockDevice
from vmm.version import ask_version, find_program

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from vmm.hypervisor import Capabilities, Recorder
    from vmm.spec import VmSpec

API_SOCKET = "api.sock"
VSOCK_SOCKET = "vsock.sock"
CONSOLE_PIPE = "console"
LOG_PIPE = "log"
METRICS_PIPE = "metrics"
PLACEHOLDER = "placeholder"
# One sector, by which the guest knows a drive that has no file of its own yet.
_PLACEHOLDER_BYTES = 512


@dataclass
class Started:
    """A Firecracker process that was just started.

    Args:
        child: the process.
        plan: its devices, placed.
        capabilities: what this VM can do.
        api: its API's socket.
        vsock: its hybrid vsock's socket, and how it sees that itself.
        console: our end of the console's pipe, or None.
        log: our end of the log's pipe, when stdout is the console; or None.
        metrics: our end of the metrics' pipe.
        inside: pipes and sockets as Firecracker sees them.
        paths: what to remove afterwards.
        jail: where it is locked in; None for nowhere.
    """

    child: subprocess.Popen[bytes]
    plan: Plan
    capabilities: Capabilities
    api: Path
    vsock: Path
    console: int | None
    log: int | None
    metrics: int
    inside: Inside
    paths: list[Path]
    jail: Jail | None


def probe(binary: str | Path, *, pci: bool) -> tuple[Path, Features]:
    """Return the program and what it has.

    Raises:
        InvalidConfig: there is none, it does not run, or it is too old.
    """
    program = find_program(binary, "firecracker", "path in [hypervisor.firecracker]")
    features = Features(ask_version(program), pci)
    features.check()
    return program, features


def capabilities(spec: VmSpec, plan: Plan, *, jailed: bool = False) -> Capabilities:
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
    why_not["jail"] = why_not["rootless"] = "a Jailer"
    why_not["hugepages"] = "hugepages in the spec"
    why_not["seccomp"] = "sandbox_seccomp in the spec"
    if found.free_page_reporting:
        why_not["free_page_reporting"] = "a BalloonDevice with it in the spec"
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
        jail=jailed,
        rootless=jailed,
        seccomp=spec.sandbox_seccomp,
        why_not=why_not,
    )


def launch(
    spec: VmSpec,
    *,
    binary: str | Path,
    pci: bool,
    jailer: Jailer | None,
    record: Recorder,
) -> Started:
    """Start Firecracker, with nothing configured yet.

    Args:
        spec: the VM.
        binary: program or its name; empty takes ``firecracker``.
        pci: start it with PCI.
        jailer: lock it in; None runs it as this user.
        record: told of each socket and file before it is made, and of the process.

    Raises:
        InvalidConfig, Unsupported: the spec is wrong, or this version can't run it.
        Conflict, LimitExceeded: its devices don't fit.
    """
    program, features = probe(binary, pci=pci)
    command = [str(program)]
    plan = make_plan(spec, features)
    boot_requests(spec, plan, Inside())  # refuses what is wrong before anything is made
    with ExitStack() as undo:
        jail = None
        if jailer is not None:
            jail_program = find_program(
                jailer.binary, "jailer", "jailer_path in [hypervisor.firecracker]"
            )
            jail = Jail(jailer, program, vm_id(spec.name), spec.runtime_dir, record)
            undo.callback(jail.remove)
            jail.make()
            for path, read_only in _files(spec):
                jail.bring_in(path, read_only=read_only)
            plan.map_path = jail.map_path
            command = jail.arguments(jail_program)
        places = _Places(spec, jail, record, undo)
        # Before 1.14 the console is stdout, so the log must not be.
        has_serial = features.has("serial_out")
        api, vsock = places.claim(API_SOCKET, "socket"), places.claim(VSOCK_SOCKET, "socket")
        console = places.pipe(CONSOLE_PIPE) if has_serial and spec.console else None
        log = None if has_serial else places.pipe(LOG_PIPE)
        metrics = places.pipe(METRICS_PIPE)
        if plan.pool:
            _write_placeholder(places.claim(PLACEHOLDER, "file"), jail)
        command += ["--api-sock", places.inside(API_SOCKET)]
        if jail is None:
            command += ["--id", vm_id(spec.name)]
        if features.pci:
            command.append("--enable-pci")
        if not spec.sandbox_seccomp:
            command.append("--no-seccomp")
        if log is not None:
            command += ["--log-path", places.inside(LOG_PIPE)]
        child = spawn([*command, *spec.extra_args], netns=spec.netns)
        undo.callback(child.kill)
        record("process", child.pid)
        undo.pop_all()
    return Started(
        child=child,
        plan=plan,
        capabilities=capabilities(spec, plan, jailed=jail is not None),
        api=api,
        vsock=vsock,
        console=console,
        log=log,
        metrics=metrics,
        inside=Inside(
            vsock=places.inside(VSOCK_SOCKET),
            serial_out=places.inside(CONSOLE_PIPE) if spec.console else "",
            metrics=places.inside(METRICS_PIPE),
            placeholder=places.inside(PLACEHOLDER),
        ),
        paths=places.paths,
        jail=jail,
    )


class _Places:
    """Where sockets and pipes are, out here and as Firecracker sees them."""

    def __init__(self, spec: VmSpec, jail: Jail | None, record: Recorder, undo: ExitStack) -> None:
        self._directory = spec.runtime_dir if jail is None else jail.link
        self._jail = jail
        self._record = record
        self._undo = undo
        self._uds = None
        self.paths: list[Path] = []
        if jail is None:
            vsocks = [device for device in spec.devices if isinstance(device, VsockDevice)]
            self._uds = vsocks[0].uds if vsocks else None

    def outside(self, name: str) -> Path:
        if name == VSOCK_SOCKET and self._uds is not None:
            return self._uds
        return self._directory / name

    def inside(self, name: str) -> str:
        return str(self.outside(name) if self._jail is None else self._jail.runtime_dir / name)

    def claim(self, name: str, kind: str) -> Path:
        path = self.outside(name)
        if kind == "socket":
            check_length(path)
        self._record(kind, str(path))
        self.paths.append(path)
        self._undo.callback(_unlink, path)
        _unlink(path)
        return path

    def pipe(self, name: str) -> int:
        owner = None if self._jail is None else self._jail.owner
        fd = make_fifo(self.claim(name, "file"), owner)
        self._undo.callback(os.close, fd)
        return fd


def _files(spec: VmSpec) -> Iterator[tuple[Path, bool]]:
    """Yield what Firecracker must open, and whether for reading only."""
    yield spec.kernel, True
    if spec.initrd is not None:
        yield spec.initrd, True
    for device in (spec.image, *spec.devices):
        if isinstance(device, (BlockDevice, PmemDevice)):
            yield device.path, device.read_only


def vm_id(name: str) -> str:
    """Return an id as Firecracker wants it: 1 to 64 letters, digits and hyphens.

    A name that is none is told apart from all others by its hash.
    """
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in name)
    if plain == name and 1 <= len(name) <= 64:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{plain[:47]}-{digest}"


def _write_placeholder(path: Path, jail: Jail | None) -> None:
    try:
        with path.open("xb") as file:
            file.truncate(_PLACEHOLDER_BYTES)
        if jail is not None:
            os.chown(path, *jail.owner)
    except OSError as error:
        raise InvalidConfig(f"can't write {path}: {error.strerror}") from error


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
