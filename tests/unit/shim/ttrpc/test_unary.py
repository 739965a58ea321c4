"""Unary calls between our client and our server."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protos.containerd import task_v2_pb2
from shim import errors
from shim.ttrpc import status
from shim.ttrpc.client import Client, ConnectionClosed, open_client
from shim.ttrpc.connection import ConnectionClosed as SameConnectionClosed
from shim.ttrpc.framing import MESSAGE_MAX
from shim.ttrpc.server import Server
from shim.ttrpc.service import CallContext, Method, Service, build_service, stub
from tests.unit.shim.ttrpc.harness import (
    LIMIT,
    client_of,
    echo_service,
    methods,
    serving,
    socket_pair,
)

TASK = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]


async def failing(client: Client, method: str = "M", **options: Any) -> status.TtrpcError:
    """The error a call of the method ends with."""
    with pytest.raises(status.TtrpcError) as caught:
        await client.call("t", method, b"", **options)
    return caught.value


async def test_round_trip_of_typed_messages() -> None:
    async def delete(
        request: task_v2_pb2.DeleteRequest, context: CallContext
    ) -> task_v2_pb2.DeleteResponse:
        await trio.lowlevel.checkpoint()
        return task_v2_pb2.DeleteResponse(pid=len(request.exec_id))

    def state(request: task_v2_pb2.StateRequest, context: CallContext) -> task_v2_pb2.StateResponse:
        namespace = context.value("containerd-namespace-ttrpc")
        return task_v2_pb2.StateResponse(id=request.id, bundle=f"{namespace}/{context.value('x')}")

    service = build_service(TASK, {"State": state, "Delete": delete})
    async with client_of(service) as client:
        task = stub(client, TASK)
        metadata = [("containerd-namespace-ttrpc", "k8s.io")]
        answer = await task.State(task_v2_pb2.StateRequest(id="c1"), metadata=metadata)
        assert (answer.id, answer.bundle) == ("c1", "k8s.io/None")
        answer = await task.Delete(task_v2_pb2.DeleteRequest(exec_id="abc"), timeout=5)
        assert answer.pid == 3
        with pytest.raises(status.TtrpcError) as caught:
            await task.Start(task_v2_pb2.StartRequest())
        assert (caught.value.code, caught.value.message) == (status.UNIMPLEMENTED, "method Start")
        with pytest.raises(AttributeError):
            _ = task.Nope


async def test_unknown_service_and_malformed_message() -> None:
    service = build_service(TASK, {"State": lambda request, context: None})
    async with client_of([service, echo_service()]) as client:
        with pytest.raises(status.TtrpcError) as caught:
            await client.call("nope", "M", b"")
        assert (caught.value.code, caught.value.message) == (status.UNIMPLEMENTED, "service nope")
        with pytest.raises(status.TtrpcError) as caught:
            await client.call(TASK.full_name, "State", b"\x0a\x05")
        assert caught.value.code == status.INVALID_ARGUMENT
        assert await client.call("t", "Echo", b"alive") == b"alive"


def test_tables_are_checked_when_built() -> None:
    with pytest.raises(ValueError, match="Stat"):
        build_service(TASK, {"Stat": lambda request, context: None})
    with pytest.raises(TypeError, match="async def"):
        build_service(TASK, {"Wait": lambda r, c: None}, cancel_on_disconnect={"Wait"})
    with pytest.raises(TypeError, match="async def"):
        methods(Sum=(lambda stream, context: None, {"client_streaming": True}))


@pytest.mark.parametrize("inline", [True, False])
async def test_exceptions_of_handlers(inline: bool) -> None:
    def work(request: bytes, context: CallContext) -> bytes:
        if request == b"own":
            raise status.TtrpcError(status.ABORTED, "text")
        if request == b"mapped":
            raise errors.NotFound("no c1")
        if request == b"unmappable":
            raise KeyError("k")
        raise RuntimeError("boom")

    async def work_async(request: bytes, context: CallContext) -> bytes:
        await trio.lowlevel.checkpoint()
        return work(request, context)

    def map_error(error: Exception) -> status.TtrpcError:
        if isinstance(error, errors.KatapyError):
            return status.TtrpcError(error.code, str(error))
        if isinstance(error, KeyError):
            raise error
        return status.TtrpcError(status.UNKNOWN, f"unexpected: {error}")

    service = echo_service(M=work if inline else work_async)
    async with client_of(service, map_error=map_error) as client:
        for request, code, text in (
            (b"own", status.ABORTED, "text"),
            (b"mapped", status.NOT_FOUND, "no c1"),
            (b"unmappable", status.UNKNOWN, "'k'"),
            (b"x", status.UNKNOWN, "unexpected: boom"),
        ):
            with pytest.raises(status.TtrpcError) as caught:
                await client.call("t", "M", request)
            assert (caught.value.code, caught.value.message) == (code, text)
        assert await client.call("t", "Echo", b"alive") == b"alive"


async def test_default_mapping_is_unknown() -> None:
    def work(request: bytes, context: CallContext) -> bytes:
        raise RuntimeError("boom")

    async with client_of(echo_service(M=work)) as client:
        error = await failing(client)
        assert (error.code, error.message) == (status.UNKNOWN, "boom")


async def test_response_of_the_wrong_type_is_an_error() -> None:
    service = build_service(
        TASK, {"State": lambda request, context: task_v2_pb2.StartResponse(pid=1)}
    )
    async with client_of(service) as client:
        with pytest.raises(status.TtrpcError) as caught:
            await client.call(TASK.full_name, "State", b"")
        assert caught.value.code == status.UNKNOWN


async def test_oversize_both_ways_leaves_the_connection_alive() -> None:
    async with client_of(echo_service(M=lambda request, context: bytes(MESSAGE_MAX))) as client:
        with pytest.raises(status.TtrpcError) as caught:
            await client.call("t", "Echo", bytes(MESSAGE_MAX))
        assert caught.value.code == status.RESOURCE_EXHAUSTED
        assert (await failing(client)).code == status.RESOURCE_EXHAUSTED
        big = os.urandom(MESSAGE_MAX - 100)
        assert await client.call("t", "Echo", big) == big


async def test_handler_sees_the_deadline_and_none_is_invented() -> None:
    seen = []

    async def note(request: bytes, context: CallContext) -> bytes:
        seen.append(context.deadline - trio.current_time())
        await trio.lowlevel.checkpoint()
        return b""

    async with client_of(echo_service(M=note)) as client:
        await client.call("t", "M", b"", timeout=30)
        await client.call("t", "M", b"")
    assert 0 < seen[0] <= 30
    assert seen[1] == math.inf


async def test_deadline_cancels_the_handler_and_the_client_gives_up() -> None:
    cancelled = trio.Event()

    async def hang(request: bytes, context: CallContext) -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with client_of(echo_service(M=hang)) as client:
        error = await failing(client, timeout=0.05)
        assert error.code == status.DEADLINE_EXCEEDED
        assert "t/M" in error.message
        await cancelled.wait()
        assert await client.call("t", "Echo", b"alive") == b"alive"
        assert (await failing(client, timeout=0)).code == status.DEADLINE_EXCEEDED
        assert (await failing(client, timeout=-1)).code == status.DEADLINE_EXCEEDED


async def test_late_reply_of_a_cancelled_call_is_dropped() -> None:
    go = trio.Event()

    async def wait(request: bytes, context: CallContext) -> bytes:
        await go.wait()
        return b"late"

    async with client_of(echo_service(M=wait)) as client:
        with trio.move_on_after(0.02):
            await client.call("t", "M", b"")
        go.set()
        assert [await client.call("t", "Echo", bytes([i])) for i in range(3)] == [
            b"\0",
            b"\1",
            b"\2",
        ]


async def test_replies_out_of_order() -> None:
    gates = {bytes([i]): trio.Event() for i in range(4)}
    results: dict[bytes, bytes] = {}

    async def wait(request: bytes, context: CallContext) -> bytes:
        await gates[request].wait()
        return request

    async with client_of(echo_service(M=wait)) as client, trio.open_nursery() as nursery:

        async def call(key: bytes) -> None:
            results[key] = await client.call("t", "M", key)

        for key in gates:
            nursery.start_soon(call, key)
        for count, key in enumerate(reversed(gates), 1):
            gates[key].set()
            await trio.testing.wait_all_tasks_blocked()
            assert len(results) == count
            assert results[key] == key


async def test_thousands_of_calls_none_lost_or_swapped() -> None:
    async def later(request: bytes, context: CallContext) -> bytes:
        for _ in range(request[0] % 5):
            await trio.lowlevel.checkpoint()
        return request

    results: dict[bytes, bytes] = {}
    async with client_of(echo_service(Later=later)) as client:

        async def call(index: int) -> None:
            payload = index.to_bytes(2, "little") * (1 + index % 300)
            results[payload] = await client.call("t", ("Echo", "Later")[index % 2], payload)

        async with trio.open_nursery() as nursery:
            for index in range(4000):
                nursery.start_soon(call, index)
    assert len(results) == 4000
    assert all(sent == got for sent, got in results.items())


async def test_state_answers_beside_many_waits() -> None:
    exited = trio.Event()
    done = []

    async def wait(request: bytes, context: CallContext) -> bytes:
        await exited.wait()
        return request

    service = echo_service(Wait=(wait, {"cancel_on_disconnect": True}))
    async with client_of(service) as client, trio.open_nursery() as nursery:

        async def waiter(index: int) -> None:
            assert await client.call("t", "Wait", bytes([index])) == bytes([index])
            done.append(index)

        for index in range(150):
            nursery.start_soon(waiter, index)
        await trio.testing.wait_all_tasks_blocked()
        for index in range(50):
            with trio.fail_after(5):
                assert await client.call("t", "Echo", bytes([index])) == bytes([index])
        assert done == []
        exited.set()
    assert sorted(done) == list(range(150))


async def test_lost_server_fails_every_pending_call() -> None:
    ours, theirs = socket_pair()
    failures = []

    async def call(client: Client) -> None:
        failures.append(await failing(client))

    with trio.fail_after(LIMIT):
        async with open_client(ours) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(call, client)
                await trio.testing.wait_all_tasks_blocked()
                await theirs.aclose()
            await client.wait_closed()
            assert client.closed
            failures.append(await failing(client))
    assert len(failures) == 21
    for error in failures:
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.message) == (status.UNAVAILABLE, "ttrpc: closed")
    assert ConnectionClosed is SameConnectionClosed


async def test_client_closed_while_calls_are_pending() -> None:
    _theirs, ours = socket_pair()
    async with open_client(ours) as client, trio.open_nursery() as nursery:
        nursery.start_soon(failing, client)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
    await _theirs.aclose()


async def test_an_exception_in_the_client_block_keeps_its_type() -> None:
    _theirs, ours = socket_pair()
    with pytest.raises(ZeroDivisionError):
        async with open_client(ours):
            raise ZeroDivisionError
    await _theirs.aclose()


async def test_disconnect_cancels_waits_and_lets_the_others_finish() -> None:
    release = trio.Event()
    log = []

    async def wait(request: bytes, context: CallContext) -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            log.append("wait cancelled")

    async def create(request: bytes, context: CallContext) -> bytes:
        await release.wait()
        log.append("create finished")
        return b""

    service = echo_service(Wait=(wait, {"cancel_on_disconnect": True}), Create=create)
    server = Server([service])
    async with serving(server) as connect:
        async with open_client(connect()) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "t", "Wait", b"")
            nursery.start_soon(client.call, "t", "Create", b"")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["wait cancelled"]
        release.set()
        assert await server.drain(5)
    assert log == ["wait cancelled", "create finished"]


async def test_serve_and_drain_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    release = trio.Event()
    results = []

    async def slow(request: bytes, context: CallContext) -> bytes:
        await release.wait()
        return b"done"

    async def call(client: Client) -> None:
        results.append(await client.call("t", "Slow", b""))

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = Server([echo_service(Slow=slow)])
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listener)
            idle = await trio.open_unix_socket(path)
            async with open_client(await trio.open_unix_socket(path)) as client:
                nursery.start_soon(call, client)
                await trio.testing.wait_all_tasks_blocked()
                async with trio.open_nursery() as inner:
                    inner.start_soon(server.drain, LIMIT)
                    assert await idle.receive_some() == b""
                    assert (await failing(client, "Echo")).code == status.UNAVAILABLE
                    release.set()
                await client.wait_closed()
            with pytest.raises(OSError, match="refused"):
                await trio.open_unix_socket(path)
    assert results == [b"done"]
    await idle.aclose()


async def test_drain_runs_out_of_time() -> None:
    async def hang(request: bytes, context: CallContext) -> bytes:
        return await trio.sleep_forever()

    server = Server([echo_service(M=hang)])
    async with (
        serving(server) as connect,
        open_client(connect()) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(failing, client)
        await trio.testing.wait_all_tasks_blocked()
        assert not await server.drain(0.05)


async def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Server([echo_service()])) as connect:
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            async with open_client(connect()) as client:
                assert isinstance(await failing(client), ConnectionClosed)
        async with open_client(connect()) as client:
            assert await client.call("t", "Echo", b"x") == b"x"


async def test_peer_check_needs_a_unix_socket() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with pytest.raises(ValueError, match="unix"):
        await Server([echo_service()]).serve(listeners[0])
    await listeners[0].aclose()


async def test_over_tcp_without_peer_check() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server([echo_service()], check_peer=False)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listener)
            address = listener.socket.getsockname()
            async with open_client(await trio.open_tcp_stream(*address[:2])) as client:
                assert await client.call("t", "Echo", b"x") == b"x"
            assert await server.drain(5)


async def test_a_flood_of_inline_calls_lets_other_tasks_run() -> None:
    """The loop must yield: one connection's flood does not keep a second one waiting."""
    served: list[bytes] = []

    def note(request: bytes, context: CallContext) -> bytes:
        served.append(request)
        return b""

    service = Service("t", [Method("M", note, bytes, bytes)])
    async with (
        serving(Server([service])) as connect,
        open_client(connect()) as one,
        open_client(connect()) as two,
        trio.open_nursery() as nursery,
    ):
        for _ in range(2000):
            nursery.start_soon(one.call, "t", "M", b"flood")
        await trio.lowlevel.checkpoint()
        await two.call("t", "M", b"single")
        assert len(served) < 2001
