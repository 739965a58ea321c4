"""Containers under containerd: run, exec, streams, calls, memory, removal."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd import task_v2_pb2
from shim.bench.figures import KATAPY, Figures
from shim.bench.guest_shell import LOOP, GuestShell
from shim.bench.rpc import ShimClient
from shim.bench.shims import memory_of
from shim.bench.world import World
from shim.errors import DeadlineExceeded, Internal

_RUN_TIMEOUT = 120.0  # a VM's start under emulation on a busy host
_EXEC_TIMEOUT = 60.0
_COPY_TIMEOUT = 300.0
_CHUNK = 1 << 20
_SLEEP = ("sleep", "3600")
_STAGES = re.compile(r'stages=\\?"([^"\\]*)\\?"')
_STAGE = re.compile(r"(\S+)=\+(\d+)ms")
_PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_TRUE = {"args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}


def run_once(world: World, runtime: str, figures: Figures) -> None:
    """``ctr run --rm`` of ``true``, and of katapy where the time went."""
    container = world.new_id(runtime)
    before = world.log.stat().st_size
    argv = world.run_command(runtime, container, "true", options=("--rm",))
    begin = time.perf_counter()
    _call(world, argv, _RUN_TIMEOUT)
    figures.add("run", "ctr run --rm true", "ms", runtime, _ms(begin))
    if runtime == KATAPY:
        for stage, milliseconds in _stages(world.log, before):
            title = f"  its start, up to: {stage}"
            figures.add(f"stage_{stage}", title, "ms", runtime, milliseconds)


@contextmanager
def started(world: World, runtime: str, *options: str) -> Iterator[str]:
    """A container that sleeps, for the length of the block; ``options`` are ctr's."""
    container = world.new_id(runtime)
    try:
        start(world, runtime, container, *options)
        yield container
    finally:
        world.remove(container)


def start(world: World, runtime: str, container: str, *options: str) -> None:
    """Start a container that sleeps, in the background."""
    argv = world.run_command(runtime, container, *_SLEEP, options=("--detach", *options))
    _call(world, argv, _RUN_TIMEOUT)


@contextmanager
def shell(world: World, runtime: str, container: str) -> Iterator[GuestShell]:
    """A shell in a container, by an exec that lasts as long as the block."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                world.ctr_command(*_exec(world, runtime, container), "sh", "-c", LOOP),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=world.env,
            )
        try:
            yield GuestShell(runtime, ours, world.deadline)
        finally:
            process.kill()
            process.wait()


def vmm_pid(world: World, container: str) -> int:
    """The process of a container's VM."""
    with _client(world, container) as client:
        said = client.call("Connect", task_v2_pb2.ConnectRequest(id=container))
    return task_v2_pb2.ConnectResponse.FromString(said).task_pid


def exec_once(world: World, runtime: str, container: str, figures: Figures) -> None:
    """Run ``true`` in a container: by ctr, and by calls to the shim alone."""
    begin = time.perf_counter()
    world.ctr(*_exec(world, runtime, container), "true", timeout=_EXEC_TIMEOUT)
    figures.add("exec_ctr", "ctr task exec true", "ms", runtime, _ms(begin))

    name = world.new_id(runtime)
    spec = AnyMessage(type_url=_PROCESS_TYPE, value=json.dumps(_TRUE).encode())
    with _client(world, container) as client:
        begin = time.perf_counter()
        client.call("Exec", task_v2_pb2.ExecProcessRequest(id=container, exec_id=name, spec=spec))
        client.call("Start", task_v2_pb2.StartRequest(id=container, exec_id=name))
        said = client.call("Wait", task_v2_pb2.WaitRequest(id=container, exec_id=name))
        elapsed = _ms(begin)
        client.call("Delete", task_v2_pb2.DeleteRequest(id=container, exec_id=name))
    status = task_v2_pb2.WaitResponse.FromString(said).exit_status
    if status:
        raise Internal(f"true ended with exit status {status}")
    figures.add("exec_rpc", "exec true, by calls to the shim", "ms", runtime, elapsed)


def copy_out(world: World, runtime: str, container: str, mib: int, figures: Figures) -> None:
    """Read zeros from an exec's stdout."""
    words = ("dd", "if=/dev/zero", "bs=64k", f"count={mib * 16}")
    argv = world.ctr_command(*_exec(world, runtime, container), *words)
    begin = time.perf_counter()
    with _process(world, argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        count = 0
        while data := process.stdout.read(_CHUNK):
            count += len(data)
    rate = mib / (time.perf_counter() - begin)
    if count != mib << 20:
        raise Internal(f"{count} of {mib << 20} bytes arrived from {container}")
    figures.add("stdout", f"stdout of an exec, {mib} MiB", "MiB/s", runtime, rate)


def copy_in(world: World, runtime: str, container: str, mib: int, figures: Figures) -> None:
    """Write zeros to an exec's stdin, which ends after the last of them."""
    # Ends by itself after the last byte, whatever ctr makes of the end of its input.
    words = ("dd", "of=/dev/null", "bs=64k", f"count={mib * 16}", "iflag=fullblock")
    argv = world.ctr_command(*_exec(world, runtime, container), *words)
    chunk = bytes(_CHUNK)
    begin = time.perf_counter()
    with _process(world, argv, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for _ in range(mib):
            process.stdin.write(chunk)
        process.stdin.flush()
        process.wait(world.deadline.limit(_COPY_TIMEOUT))
        elapsed = time.perf_counter() - begin
    figures.add("stdin", f"stdin of an exec, {mib} MiB", "MiB/s", runtime, mib / elapsed)


def state_rate(
    world: World, runtime: str, container: str, seconds: float, figures: Figures
) -> None:
    """Ask the shim for a container's state, one call at a time and many at once."""
    request = task_v2_pb2.StateRequest(id=container)
    for depth in (1, 32):
        with _client(world, container) as client:
            client.call("State", request)
            rate = client.rate("State", request, depth, seconds)
        figures.add(f"state_{depth}", f"State, {depth} in flight", "calls/s", runtime, rate)


def guest_memory(world: World, container: str, figures: Figures) -> None:
    """What the guest uses of its memory, its page cache included."""
    text = world.ctr(
        *_exec(world, KATAPY, container), "cat", "/proc/meminfo", timeout=_EXEC_TIMEOUT
    )
    sizes = {name: int(value.split()[0]) for name, value in re.findall(r"(\w+):\s+(.*)", text)}
    used = (sizes["MemTotal"] - sizes["MemFree"]) / 1024
    figures.add("guest_used", "memory not free in the guest, with a container", "MiB", KATAPY, used)


def pods(world: World, runtime: str, count: int, figures: Figures) -> None:
    """Several pods at once: memory of each shim and VMM, and how long removal takes."""
    containers = [world.new_id(runtime) for _ in range(count)]
    try:
        for container in containers:
            start(world, runtime, container)
        for container in containers:
            with _client(world, container) as client:
                said = client.call("Connect", task_v2_pb2.ConnectRequest(id=container))
            pids = task_v2_pb2.ConnectResponse.FromString(said)
            shim = memory_of(pids.shim_pid)
            figures.add("shim_rss", f"shim with {count} pods, RSS each", "MiB", runtime, shim.rss)
            figures.add("shim_pss", f"shim with {count} pods, PSS each", "MiB", runtime, shim.pss)
            if runtime == KATAPY:
                vmm = memory_of(pids.task_pid)
                figures.add("vmm_pss", f"VMM with {count} pods, PSS each", "MiB", runtime, vmm.pss)
    finally:
        for container in containers:
            begin = time.perf_counter()
            world.remove(container)
            figures.add("remove", "killing and removing a container", "ms", runtime, _ms(begin))


def _exec(world: World, runtime: str, container: str) -> tuple[str, ...]:
    return ("tasks", "exec", "--exec-id", world.new_id(runtime), container)


def _client(world: World, container: str) -> ShimClient:
    return ShimClient.of_bundle(world.bundle(container), world.deadline.limit(_EXEC_TIMEOUT))


def _call(world: World, argv: list[str], timeout: float) -> None:
    with _process(world, argv, limit=timeout):
        pass


@contextmanager
def _process(
    world: World,
    argv: list[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    limit: float = _COPY_TIMEOUT,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ctr beside the block, wait for its end and check that it succeeded."""
    seconds = world.deadline.limit(limit)
    process = subprocess.Popen(
        argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=world.env
    )
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield process
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        timer.cancel()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
    if expired.is_set():
        raise DeadlineExceeded(f"{' '.join(argv)}: not done after {seconds:g} s")
    if process.returncode:
        said = errors.decode(errors="replace").strip()
        raise Internal(f"{' '.join(argv)}: exit status {process.returncode}: {said}")


def _ms(begin: float) -> float:
    return (time.perf_counter() - begin) * 1e3


def _stages(log: Path, offset: int) -> list[tuple[str, float]]:
    """The last list of stages that a shim wrote to the log since ``offset``."""
    with open(log, "rb") as file:
        file.seek(offset)
        found = _STAGES.findall(file.read().decode(errors="replace"))
    return [(name, float(value)) for name, value in _STAGE.findall(found[-1])] if found else []
