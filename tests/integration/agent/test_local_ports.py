"""Ports of the guest at the loopback of a pod's network namespace, as port-forward dials them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from shim.agent_session import connect
from shim.log import Log
from shim.net import local_ports
from shim.net.local_ports import LocalPorts
from shim.net.netlink import in_netns
from tests.integration.agent.conftest import LIMIT, AgentProcess
from tests.support.pod_netns import Netns, new_netns

pytestmark = pytest.mark.root


@pytest.fixture
def pod() -> Iterator[Netns]:
    with new_netns(f"ktports{os.getpid()}") as netns:
        yield netns


@pytest.fixture(scope="module")
def guest_net(agent: AgentProcess) -> str:
    """The agent's network namespace, which stands for the guest's."""
    path = f"/proc/{agent.pid}/ns/net"
    subprocess.run(["nsenter", f"--net={path}", "ip", "link", "set", "lo", "up"], check=True)
    return path


@asynccontextmanager
async def reflected(agent: AgentProcess, pod: Netns) -> AsyncIterator[None]:
    netns = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stream = await trio.open_unix_socket(agent.socket)
        async with connect(stream, LIMIT) as client, trio.open_nursery() as nursery:
            nursery.start_soon(LocalPorts(netns, Log(-1)).reflect, client)
            yield
            nursery.cancel_scope.cancel()
    finally:
        os.close(netns)


def guest_listener(guest_net: str, host: str) -> trio.SocketListener:
    """A server in the guest, on a port of the kernel's choice."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.bind((host, 0))
        sock.listen()
        return sock

    sock = in_netns(guest_net, make)
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def reverse(stream: trio.SocketStream) -> None:
    """Answer all that was said, backwards, after its end."""
    async with stream:
        data = b"".join([part async for part in stream])
        await stream.send_all(data[::-1])


async def dial(pod: Netns, port: int) -> trio.SocketStream | None:
    """Connect to localhost in the pod's namespace; None when nobody listens."""
    sock = pod.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        await trio.to_thread.run_sync(sock.connect, ("127.0.0.1", port))
    except ConnectionRefusedError:
        sock.close()
        return None
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def open_port(pod: Netns, port: int) -> trio.SocketStream:
    while True:  # nothing tells when the port is there
        if (stream := await dial(pod, port)) is not None:
            return stream
        await trio.sleep(0.05)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
async def test_a_port_is_there_as_long_as_in_the_guest(
    agent: AgentProcess, guest_net: str, pod: Netns, host: str
) -> None:
    data = os.urandom(2 << 20)
    listener = guest_listener(guest_net, host)
    port = listener.socket.getsockname()[1]
    with trio.fail_after(LIMIT):
        async with reflected(agent, pod):
            async with trio.open_nursery() as server:
                server.start_soon(trio.serve_listeners, reverse, [listener])
                async with await open_port(pod, port) as stream:
                    await stream.send_all(data)
                    await stream.send_eof()
                    assert b"".join([part async for part in stream]) == data[::-1]
                server.cancel_scope.cancel()
            # Between the server's end and its being noticed, a connection ends at once.
            while (late := await dial(pod, port)) is not None:
                async with late:
                    assert await late.receive_some(1) == b""
                await trio.sleep(0.05)


async def test_a_guest_with_many_ports_costs_a_few_descriptors(
    agent: AgentProcess, guest_net: str, pod: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ports, "PORTS_MAX", 3)
    servers = [guest_listener(guest_net, "127.0.0.1") for _ in range(5)]
    ports = sorted(server.socket.getsockname()[1] for server in servers)
    with trio.fail_after(LIMIT):
        async with reflected(agent, pod):
            for port in ports[:3]:
                await (await open_port(pod, port)).aclose()
            for port in ports[3:]:
                assert await dial(pod, port) is None
    for server in servers:
        await server.aclose()
