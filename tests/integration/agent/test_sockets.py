"""Unix sockets of the host in the guest: the shim's proxy and the agent's end of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from protos.kata import health_pb2
from protos.kata.agent_pb2 import CreateContainerRequest
from shim.errors import Unavailable
from shim.storage.host_socket import HostSocket, hold
from shim.storage.socket_proxy import Owner, SocketProxy
from tests.integration.agent.conftest import (
    LIMIT,
    AgentProcess,
    Guest,
    busybox_root,
    oci_spec,
)

pytestmark = pytest.mark.root


def host_socket(path: Path) -> HostSocket:
    """A socket by its path; the descriptor is the test process's until its end."""
    return HostSocket(str(path), hold(str(path.parent)), path.name)


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def serve(path: Path, *, task_status: trio.TaskStatus[None]) -> None:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, echo, [trio.SocketListener(sock)])
        task_status.started()


@asynccontextmanager
async def proxied(agent: AgentProcess, guest: Guest, path: Path) -> AsyncIterator[Path]:
    """The socket in the guest, by its path on this host."""
    inside = "/run/kata-containers/sandbox/sockets/v1"
    proxy = SocketProxy(guest.client, host_socket(path), inside, Owner(0, 7, 0o660))
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield agent.root / "sandbox/sockets/v1"
        nursery.cancel_scope.cancel()


async def test_bytes_go_both_ways(agent: AgentProcess, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "s"
    data = os.urandom(5 << 20)
    received = bytearray()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, path)
            async with proxied(agent, guest, path) as inside:
                info = inside.stat()
                assert (info.st_mode & 0o777, info.st_gid) == (0o660, 7)
                stream = await trio.open_unix_socket(str(inside))

                async def send() -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                nursery.start_soon(send)
                async for part in stream:
                    received += part
                await stream.aclose()
            nursery.cancel_scope.cancel()
    assert len(received) == len(data)
    assert bytes(received) == data


async def test_many_connections_at_once(agent: AgentProcess, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, path)
            async with proxied(agent, guest, path) as inside:

                async def talk(number: int) -> None:
                    async with await trio.open_unix_socket(str(inside)) as stream:
                        await stream.send_all(b"%d" % number)
                        await stream.send_eof()
                        assert b"".join([part async for part in stream]) == b"%d" % number

                async with trio.open_nursery() as talkers:
                    for number in range(40):
                        talkers.start_soon(talk, number)
            nursery.cancel_scope.cancel()


async def test_nobody_listens_on_the_host(
    agent: AgentProcess, guest: Guest, tmp_path: Path
) -> None:
    with trio.fail_after(LIMIT):
        async with proxied(agent, guest, tmp_path / "none") as inside:
            stream = await trio.open_unix_socket(str(inside))
            assert await stream.receive_some() == b""
            await stream.aclose()


async def test_the_end_takes_socket_and_connections_along(
    agent: AgentProcess, guest: Guest, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, path)
            async with proxied(agent, guest, path) as inside:
                stream = await trio.open_unix_socket(str(inside))
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
            assert await stream.receive_some() == b""
            await stream.aclose()
            # The agent heard of it before it hears of this.
            await guest.health.Check(health_pb2.CheckRequest(), timeout=LIMIT)
            assert not inside.exists()
            nursery.cancel_scope.cancel()


async def test_a_path_that_is_too_long_is_refused(guest: Guest, tmp_path: Path) -> None:
    long = "/run/kata-containers/sandbox/sockets/" + "x" * 100
    proxy = SocketProxy(guest.client, host_socket(tmp_path / "s"), long, Owner(0, 0, 0o600))
    with trio.fail_after(LIMIT), pytest.raises(Unavailable, match="too long"):
        await proxy.run()


async def test_what_a_server_said_before_it_closed_arrives(
    agent: AgentProcess, guest: Guest, tmp_path: Path
) -> None:
    """Even when the reader in the guest is slow, and the host has long been done."""
    path, data = tmp_path / "s", os.urandom(200_000)

    async def say(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(data)

    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    listeners = [trio.SocketListener(sock)]
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, say, listeners)
            async with proxied(agent, guest, path) as inside:
                async with await trio.open_unix_socket(str(inside)) as stream:
                    await stream.send_eof()
                    received = b""
                    while part := await stream.receive_some(5000):
                        received += part
                        await trio.sleep(0.005)
                assert received == data
            nursery.cancel_scope.cancel()


async def test_a_socket_of_a_shared_directory_is_covered(
    agent: AgentProcess, guest: Guest, tmp_path: Path
) -> None:
    share = agent.root / "shared/containers/v"
    share.mkdir(parents=True)
    path, place = tmp_path / "s", share / "s"
    seen = Path(f"/proc/{agent.pid}/root/run/kata-containers/shared/containers/v/s")
    inside = "/run/kata-containers/shared/containers/v"

    def proxy(cover: str) -> SocketProxy:
        listening = "/run/kata-containers/sandbox/sockets/v2"
        return SocketProxy(guest.client, host_socket(path), listening, Owner(0, 7, 0o660), cover)

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, path)
            for wrong in ("/run/kata-containers/sandbox/s", f"{inside}/none", f"{inside}/../../s"):
                with pytest.raises(Unavailable):
                    await nursery.start(proxy(wrong).run)
            await nursery.start(serve, place)
            (share / "link").symlink_to("s")
            (share / "file").touch()
            for name in ("link", "file"):
                with pytest.raises(Unavailable, match="is no socket"):
                    await nursery.start(proxy(f"{inside}/{name}").run)
            covering = proxy(f"{inside}/s")
            scope = await nursery.start(cancellable, covering.run)
            assert (seen.stat().st_gid, place.stat().st_gid) == (7, 0)
            stream = await trio.open_unix_socket(str(seen))
            # Another socket takes the place of the covered one; the connection goes on.
            place.unlink()
            await nursery.start(serve, place)
            assert seen.stat().st_gid == 0
            await covering.cover_again()
            await until(lambda: seen.stat().st_gid == 7)
            await stream.send_all(b"still here")
            assert await stream.receive_some() == b"still here"
            scope.cancel()
            await until(lambda: seen.stat().st_gid != 7)
            await stream.aclose()
            nursery.cancel_scope.cancel()
    assert "containers/v" not in Path(f"/proc/{agent.pid}/mounts").read_text()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(0.01)


async def cancellable(
    run: Callable[..., Awaitable[None]], *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            task_status.started(scope)


async def test_a_container_follows_the_covers_of_its_volume(
    agent: AgentProcess, guest: Guest, tmp_path: Path
) -> None:
    """Its root is on the same file system as the volume, as with 9p."""
    point = "/run/kata-containers/shared/containers/one"
    inside = Path(f"/proc/{agent.pid}/root{point}")

    def run(*words: str) -> None:
        subprocess.run(["nsenter", f"--mount=/proc/{agent.pid}/ns/mnt", *words], check=True)

    run("mkdir", "-p", point)
    run("mount", "-t", "tmpfs", "none", point)
    run("mount", "--make-shared", point)
    busybox_root(inside / "rootfs")
    (inside / "volume").mkdir()
    spec = oci_spec(f"{point}/rootfs", ["sleep", "1000"])
    spec["linux"]["rootfsPropagation"] = "rslave"
    spec["mounts"].append(
        {
            "destination": "/v",
            "source": f"{point}/volume",
            "type": "bind",
            "options": ["rbind", "rslave"],
        }
    )
    request = CreateContainerRequest(
        container_id="follower", oci_spec_json=json.dumps(spec).encode()
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)
    await guest.start("follower")

    async def group() -> bytes:
        await guest.exec("follower", "look", ["busybox", "stat", "-c", "%g", "/v/s"])
        return (await guest.finish("follower", "look"))[1]

    try:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, inside / "volume/s")
                proxy = SocketProxy(
                    guest.client,
                    host_socket(tmp_path / "none"),
                    "/run/kata-containers/sandbox/sockets/v3",
                    Owner(0, 7, 0o660),
                    f"{point}/volume/s",
                )
                assert await group() == b"0\n"
                scope = await nursery.start(cancellable, proxy.run)
                assert await group() == b"7\n"
                scope.cancel()
                while await group() == b"7\n":
                    pass
                nursery.cancel_scope.cancel()
    finally:
        await guest.remove("follower")
        run("umount", point)
