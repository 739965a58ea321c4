"""The running server against hand-made frames: what only a foreign or broken peer sends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.containerd import task_v2_pb2
from shim.ttrpc import status
from shim.ttrpc.client import ConnectionClosed, open_client
from shim.ttrpc.framing import DATA, MESSAGE_MAX, REQUEST, encode_frame, encode_header
from shim.ttrpc.messages import encode_request
from shim.ttrpc.server import Server
from shim.ttrpc.service import CallContext, build_service
from tests.unit.shim.ttrpc.harness import RawPeer, echo_service, serving, socket_pair
from tests.unit.shim.ttrpc.test_connection import V1, V1R, V2, V2R, V5, V8, V11

TASK = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]
ECHO = encode_request("t", "Echo", b"x")


@asynccontextmanager
async def raw_peer() -> AsyncIterator[RawPeer]:
    """Frames by hand to a server of Echo and a Connect and Start with fixed answers."""

    async def start(
        request: task_v2_pb2.StartRequest, context: CallContext
    ) -> task_v2_pb2.StartResponse:
        assert 0 < context.deadline - trio.current_time() <= 5
        assert (request.id, request.exec_id) == ("c1", "e1")
        return task_v2_pb2.StartResponse()

    def connect(
        request: task_v2_pb2.ConnectRequest, context: CallContext
    ) -> task_v2_pb2.ConnectResponse:
        assert context.metadata == (("containerd-namespace-ttrpc", "default"),)
        return task_v2_pb2.ConnectResponse(shim_pid=100, task_pid=200)

    def state(request: task_v2_pb2.StateRequest, context: CallContext) -> task_v2_pb2.StateResponse:
        raise AssertionError("called after its deadline")

    task = build_service(TASK, {"Connect": connect, "Start": start, "State": state})
    async with serving(Server([task, echo_service()])) as open_connection:
        peer = RawPeer(open_connection())
        yield peer
        await peer.stream.aclose()


async def alive(peer: RawPeer, stream_id: int) -> None:
    await peer.send(encode_frame(stream_id, REQUEST, 0, ECHO))
    answered, response = await peer.response()
    assert (answered, response.code, response.payload) == (stream_id, 0, b"x")


async def test_vectors_byte_for_byte() -> None:
    async with raw_peer() as peer:
        await peer.send(V1 + V2)
        assert [await peer.frame() for _ in range(2)] == [
            (1, 2, 0, bytes.fromhex(V1R[20:])),
            (3, 2, 0, bytes.fromhex(V2R[20:])),
        ]
        await peer.send(V5)
        answered, response = await peer.response()
        assert (answered, response.code) == (9, status.DEADLINE_EXCEEDED)
        await peer.send(V11)
        answered, response = await peer.response()
        assert (answered, response.code) == (19, status.UNIMPLEMENTED)


async def test_frame_split_byte_by_byte_and_many_in_one_write() -> None:
    async with raw_peer() as peer:
        for byte in encode_frame(1, REQUEST, 0, ECHO):
            await peer.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await peer.response())[0] == 1
        await peer.send(b"".join(encode_frame(i, REQUEST, 0, ECHO) for i in range(3, 2003, 2)))
        assert [(await peer.response())[0] for _ in range(1000)] == list(range(3, 2003, 2))


async def test_rejections_leave_the_connection_alive() -> None:
    async with raw_peer() as peer:
        await alive(peer, 3)
        for frame, stream_id, code in (
            (encode_frame(3, REQUEST, 0, ECHO), 3, status.INVALID_ARGUMENT),
            (encode_frame(1, REQUEST, 0, ECHO), 1, status.INVALID_ARGUMENT),
            (encode_frame(6, REQUEST, 0, ECHO), 6, status.INVALID_ARGUMENT),
            (encode_frame(5, REQUEST, 0, b"\xff"), 5, status.INVALID_ARGUMENT),
            (encode_frame(99, DATA, 0, b"x"), 99, status.INVALID_ARGUMENT),
        ):
            await peer.send(frame)
            answered, response = await peer.response()
            assert (answered, response.code) == (stream_id, code)
        await peer.send(encode_frame(7, 200, 0, b"unknown type"))
        await alive(peer, 7)


async def test_oversized_request_is_discarded() -> None:
    async with raw_peer() as peer:
        await peer.send(V8)
        answered, response = await peer.response()
        assert (answered, response.code) == (15, status.RESOURCE_EXHAUSTED)
        await peer.send(bytes(MESSAGE_MAX + 1))
        await alive(peer, 17)


@pytest.mark.parametrize("cut", [1, 5, 9, 10, 15])
async def test_peer_vanishes_in_mid_frame(cut: int) -> None:
    server = Server([echo_service()])
    async with serving(server) as connect:
        peer = RawPeer(connect())
        await peer.send(encode_frame(1, REQUEST, 0, ECHO)[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await server.drain(0)
        assert server.draining


@pytest.mark.parametrize("cut", [1, 9, 10, 12])
async def test_server_vanishes_in_mid_frame(cut: int) -> None:
    ours, theirs = socket_pair()
    async with open_client(ours) as client, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(ConnectionClosed):
                await client.call("t", "Echo", b"")

        nursery.start_soon(call)
        await theirs.send_all((encode_header(5, 1, 2, 0) + b"abc")[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()


async def test_answers_sent_before_the_peer_left_are_not_lost() -> None:
    """The peer answers and leaves while we still write: the write fails, the answer counts."""
    ours, theirs = socket_pair()
    results: list[bytes | str] = []
    async with open_client(ours) as client:

        async def call(size: int) -> None:
            try:
                results.append(await client.call("t", "Echo", bytes(size)))
            except ConnectionClosed:
                results.append("closed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, 0)
            await trio.testing.wait_all_tasks_blocked()
            await theirs.send_all(bytes.fromhex("0000000300000001020012") + b"\x01y")
            await theirs.aclose()
            nursery.start_soon(call, 3 << 20)
    assert sorted(map(str, results)) == ["b'y'", "closed"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=40) | st.just(encode_frame(1, REQUEST, 0, ECHO)), max_size=6))
def test_arbitrary_bytes_never_take_the_server_down(chunks: list[bytes]) -> None:
    async def main() -> None:
        async with serving(Server([echo_service()])) as connect:
            peer = RawPeer(connect())
            for chunk in chunks:
                await peer.send(chunk)
            await peer.stream.aclose()
            async with open_client(connect()) as client:
                assert await client.call("t", "Echo", b"alive") == b"alive"

    trio.run(main)
