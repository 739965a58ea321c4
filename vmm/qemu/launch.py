"""Start QEMU for a spec: sockets bound here, passed by descriptor, nothing to wait for.

Standard library only, so that a process can start its VM before it imports trio and
hand the result to :class:`~vmm.qemu.qemu.QemuHypervisor` afterwards.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.arch import architecture
from vmm.qemu import accel, command, probe, tsc
from vmm.qemu.plan import make_plan
from vmm.sockets import listen
from vmm.spawn import spawn

if TYPE_CHECKING:
    import subprocess

    from vmm.hypervisor import Recorder
    from vmm.qemu.accel import Accelerator
    from vmm.qemu.plan import Plan
    from vmm.qemu.probe import QemuFeatures
    from vmm.spec import VmSpec

DEFAULT_CACHE = Path("/var/cache/katapy")
QMP = "qmp"
CONSOLE = "console"
EXTRA_MONITOR = "extra-monitor"


@dataclass(frozen=True)
class Launched:
    """A QEMU process that was just started; its guest does not run yet.

    Args:
        child: the process.
        sockets: its listening sockets by role: ``qmp``, ``console``, ``extra-monitor``,
            serial port ids.
        plan: its devices, placed.
        features: what this QEMU has.
        accelerator: what runs the guest's instructions.
    """

    child: subprocess.Popen[bytes]
    sockets: dict[str, Path]
    plan: Plan
    features: QemuFeatures
    accelerator: Accelerator


def launch(
    spec: VmSpec,
    *,
    binary: str | Path = "",
    cache_dir: Path | None = DEFAULT_CACHE,
    record: Recorder | None = None,
) -> Launched:
    """Start QEMU, stopped before the guest's first instruction.

    Args:
        spec: the VM.
        binary: QEMU program or its name; empty takes the system's own.
        cache_dir: where probe results are kept between processes.
        record: told of each socket before it is made, and of the process.

    Raises:
        InvalidConfig: the spec is wrong, or QEMU can't run it.
        Conflict, LimitExceeded: its devices don't fit.
    """
    arch = architecture(spec.arch)
    program = probe.find_binary(arch, binary)
    features = probe.probe(program, cache_dir)
    accelerator = accel.choose(spec.accel, arch)
    emulated_x86 = accelerator.name == "tcg" and arch.name == "x86_64"
    tsc_khz = tsc.host_tsc_khz(cache_dir) if emulated_x86 else 0
    plan = make_plan(spec)
    serial_ids = command.serial_ids(plan)
    roles = [QMP, *([CONSOLE] if spec.console else []), *serial_ids]
    roles += [EXTRA_MONITOR] if spec.extra_monitor else []
    sockets = {role: spec.runtime_dir / f"{role}.sock" for role in roles}
    with ExitStack() as undo_on_error, ExitStack() as close_ours:
        fds: dict[str, int] = {}
        for role, path in sockets.items():
            if record is not None:
                record("socket", str(path))
            listener = listen(path)
            undo_on_error.callback(_unlink, path)
            close_ours.enter_context(listener)
            fds[role] = listener.fileno()
        listeners = command.Listeners(
            fds[QMP],
            fds.get(CONSOLE),
            {role: fds[role] for role in serial_ids},
            fds.get(EXTRA_MONITOR),
        )
        argv = command.build(
            spec,
            plan,
            binary=program,
            features=features,
            accelerator=accelerator,
            listeners=listeners,
            tsc_khz=tsc_khz,
        )
        device_fds = [fd for placed in plan.placed.values() for fd in placed.fds]
        child = spawn(argv, pass_fds=(*listeners.all(), *device_fds), netns=spec.netns)
        undo_on_error.callback(_end, child)
        if record is not None:
            record("process", child.pid)
        undo_on_error.pop_all()
    return Launched(child, sockets, plan, features, accelerator)


def _end(child: subprocess.Popen[bytes]) -> None:
    with child:  # closes its output and waits for it
        child.kill()


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
