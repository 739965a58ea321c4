"""A shim by itself, without a pod: how soon it is there, how soon it answers, its memory."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from protos.containerd import task_v2_pb2
from shim.bench.deadline import run
from shim.bench.figures import Figures
from shim.bench.rpc import ShimClient
from shim.bench.world import SHIMS, World
from shim.errors import DeadlineExceeded, Unavailable

_TIMEOUT = 30.0
_END_TIMEOUT = 10.0
# What `start` reads; no pod can be made of it.
_CONFIG = '{"ociVersion": "1.0.2"}'


@dataclass(frozen=True, slots=True)
class Memory:
    """A process's memory in MiB: resident, and with shared pages divided by their users."""

    rss: float
    pss: float


def measure(world: World, runtime: str, figures: Figures) -> None:
    """Start a shim, call it, look at its memory and end it."""
    container = world.new_id(runtime)
    bundle = world.folder / "bundles" / container
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(_CONFIG)
    os.mkfifo(bundle / "log", 0o600)
    # containerd has it open for as long as the shim lives; without, runc's shim ends.
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _measure(world, runtime, container, bundle, figures)
    finally:
        os.close(log)
        shutil.rmtree(bundle)


def _measure(world: World, runtime: str, container: str, bundle: Path, figures: Figures) -> None:
    program = shutil.which(SHIMS[runtime], path=world.env["PATH"]) or SHIMS[runtime]
    argv: list[str | Path] = [
        program, "-namespace", world.namespace, "-address", world.address,
        "-publish-binary", world.containerd, "-id", container, "start",
    ]  # fmt: skip
    env = {**world.env, "TTRPC_ADDRESS": str(world.ttrpc_address)}
    begin = time.perf_counter()
    answer = run(argv, timeout=world.deadline.limit(_TIMEOUT), env=env, cwd=bundle)
    there = time.perf_counter()
    with ShimClient(answer, world.deadline.limit(_TIMEOUT)) as client:
        said = client.call("Connect", task_v2_pb2.ConnectRequest(id=container))
        answered = time.perf_counter()
        pid = task_v2_pb2.ConnectResponse.FromString(said).shim_pid
        pidfd = os.pidfd_open(pid)
        try:
            memory = memory_of(pid)
            with contextlib.suppress(Unavailable):  # it may be gone before it has answered
                client.call("Shutdown", task_v2_pb2.ShutdownRequest(id=container, now=True))
        finally:
            _await_end(pidfd)
    for key, title, unit, value in (
        ("shim_start", "shim start, to its address", "ms", (there - begin) * 1e3),
        ("shim_first_rpc", "shim start, to its first answer", "ms", (answered - begin) * 1e3),
        ("shim_idle_rss", "idle shim, RSS", "MiB", memory.rss),
        ("shim_idle_pss", "idle shim, PSS", "MiB", memory.pss),
    ):
        figures.add(key, title, unit, runtime, value)


def memory_of(pid: int) -> Memory:
    """Read a process's memory from the kernel."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        sizes[name] = int(value) / 1024
    return Memory(sizes["Rss:"], sizes["Pss:"])


def _await_end(pidfd: int) -> None:
    try:
        ready, _, _ = select.select([pidfd], [], [], _END_TIMEOUT)
        if not ready:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise DeadlineExceeded(f"a shim did not end within {_END_TIMEOUT:g} s of Shutdown")
    finally:
        os.close(pidfd)
