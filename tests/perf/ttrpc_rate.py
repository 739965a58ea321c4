"""Prints ttrpc rates: State-like calls per second, and stream throughput.

    python -m tests.perf.ttrpc_rate [--seconds 2]

The server of each row runs in a process of its own, whose CPU time is printed beside the
rate and is the steadier figure on a busy machine. The first rows come from a caller that
is nothing but blocking sockets, so that they show the server; the others from our client.
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from protos.containerd import task_v2_pb2
from protos.containerd.task_types_pb2 import RUNNING, ProcessInfo
from shim.ttrpc.client import Client, open_client
from shim.ttrpc.framing import HEADER_SIZE, REQUEST, encode_frame
from shim.ttrpc.messages import encode_request
from shim.ttrpc.server import Server
from shim.ttrpc.service import CallContext, Method, Service, build_service
from shim.ttrpc.stream import ServerStream

TASK = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]
Row = Callable[[socket.socket, float], int]
CONTAINER = "c" * 64


def state(request: task_v2_pb2.StateRequest, context: CallContext) -> task_v2_pb2.StateResponse:
    """Answer as a shim does from its own memory."""
    return task_v2_pb2.StateResponse(id=request.id, bundle="/run/b", pid=42, status=RUNNING)


async def pids(request: task_v2_pb2.PidsRequest, context: CallContext) -> task_v2_pb2.PidsResponse:
    """The like as a task of its own."""
    return task_v2_pb2.PidsResponse(processes=[ProcessInfo(pid=42)])


async def sink(stream: ServerStream, context: CallContext) -> bytes:
    """Count what arrives."""
    total = 0
    while (message := await stream.receive()) is not None:
        total += len(message)
    return str(total).encode()


async def source(request: bytes, stream: ServerStream, context: CallContext) -> None:
    """Send messages of the asked size for the asked time."""
    size, seconds = request.split()
    chunk, end = bytes(int(size)), time.monotonic() + float(seconds)
    while time.monotonic() < end:
        await stream.send_encoded(chunk)


async def serve(connection: socket.socket) -> None:
    """Run the server on one connection."""
    bulk = Service(
        "bulk",
        [
            Method("Sink", sink, bytes, bytes, client_streaming=True),
            Method("Source", source, bytes, bytes, server_streaming=True),
        ],
    )
    services = [build_service(TASK, {"State": state, "Pids": pids}), bulk]
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    await Server(services).serve_connection(stream)


def fork_server() -> tuple[int, socket.socket]:
    """Start a server process; gives its pid and a connection to it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        trio.run(serve, theirs)
        os._exit(0)
    theirs.close()
    return pid, ours


def blocking_calls(connection: socket.socket, method: str, depth: int, seconds: float) -> int:
    """Call with ``depth`` requests in flight; gives the number of calls."""
    payload = task_v2_pb2.StateRequest(id=CONTAINER).SerializeToString()
    request = encode_request(TASK.full_name, method, payload)
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        ids = range(2 * count + 1, 2 * (count + depth) + 1, 2)
        connection.sendall(b"".join(encode_frame(i, REQUEST, 0, request) for i in ids))
        missing = depth
        while missing:
            data = connection.recv(65536)
            pos = 0
            while pos < len(data):  # replies are small: the server writes whole frames
                pos += HEADER_SIZE + int.from_bytes(data[pos : pos + 4], "big")
                missing -= 1
        count += depth
    return count


async def client_calls(client: Client, callers: int, seconds: float) -> int:
    """Call from so many tasks; gives the number of calls."""
    payload = task_v2_pb2.StateRequest(id=CONTAINER).SerializeToString()
    end = time.perf_counter() + seconds
    count = 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await client.call(TASK.full_name, "State", payload)
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(caller)
    return count


async def upload(client: Client, size: int, seconds: float) -> int:
    """Send messages of ``size`` bytes; gives the number of bytes."""
    chunk, sent = bytes(size), 0
    end = time.perf_counter() + seconds
    async with client.stream("bulk", "Sink") as stream:
        while time.perf_counter() < end:
            await stream.send(chunk)
            sent += size
        stream.close_send()
        if await stream.receive() != str(sent).encode():
            raise SystemExit("bytes were lost")
    return sent


async def download(client: Client, size: int, seconds: float) -> int:
    """Receive messages of ``size`` bytes; gives the number of bytes."""
    async with client.stream("bulk", "Source", f"{size} {seconds}".encode()) as stream:
        return sum([len(message) async for message in stream])


def through_client(work: Callable[[Client, int, float], Awaitable[int]], argument: int) -> Row:
    """Give a row that runs under trio with our client."""

    async def run(connection: socket.socket, seconds: float) -> int:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        async with open_client(stream) as client:
            return await work(client, argument, seconds)

    return lambda connection, seconds: trio.run(run, connection, seconds)


def measure(name: str, unit: str, scale: float, row: Row, seconds: float) -> None:
    """Run one row against a fresh server and print it."""
    pid, connection = fork_server()
    with connection:
        begin = time.perf_counter()
        count = row(connection, seconds)
        elapsed = time.perf_counter() - begin
    usage = os.wait4(pid, 0)[2]
    cpu = (usage.ru_utime + usage.ru_stime) / count * 1e6 * scale
    print(f"{name:42} {count / elapsed / scale:12,.0f} {unit}/s {cpu:10,.1f} µs CPU/{unit}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per row")
    seconds = parser.parse_args().seconds
    for kind, method in (("def", "State"), ("async def", "Pids")):
        for depth in (1, 32):
            row: Row = functools.partial(_blocking, method, depth)
            measure(f"{kind} handler, {depth} in flight", "call", 1, row, seconds)
    for callers in (1, 32):
        row = through_client(client_calls, callers)
        measure(f"def handler, our client, {callers} callers", "call", 1, row, seconds)
    for size in (64, 256):
        for name, work in (("to the server", upload), ("from the server", download)):
            row = through_client(work, size << 10)
            measure(f"stream of {size} KiB messages {name}", "MB", 1e6, row, seconds)
    return 0


def _blocking(method: str, depth: int, connection: socket.socket, seconds: float) -> int:
    return blocking_calls(connection, method, depth, seconds)


if __name__ == "__main__":
    sys.exit(main())
