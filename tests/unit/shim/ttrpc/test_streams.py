"""Streaming calls of every kind between our client and our server."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.any_pb2 import Any as PbAny

from protos.containerd import streaming_pb2, transfer_pb2
from shim.ttrpc import status, transport
from shim.ttrpc.client import ConnectionClosed, open_client
from shim.ttrpc.framing import DATA, FLAG_REMOTE_OPEN, MESSAGE_MAX, REQUEST, encode_frame
from shim.ttrpc.messages import encode_request
from shim.ttrpc.server import Server
from shim.ttrpc.service import CallContext, build_service, stub
from shim.ttrpc.stream import ServerStream
from tests.unit.shim.ttrpc.harness import RawPeer, client_of, echo_service, serving, socket_pair

STREAMING = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]
BIDI = {"client_streaming": True, "server_streaming": True}


async def echo_stream(stream: ServerStream, context: CallContext) -> None:
    async for message in stream:
        await stream.send(message)


async def sum_stream(stream: ServerStream, context: CallContext) -> bytes:
    total = 0
    async for message in stream:
        total += int(message or b"0")
    return str(total).encode()


async def divide_stream(request: bytes, stream: ServerStream, context: CallContext) -> None:
    for part in request.split(b"/"):
        await stream.send(part)


async def null_stream(stream: ServerStream, context: CallContext) -> bytes:
    async for message in stream:
        assert message == b""
    return b""


SERVICE = echo_service(
    EchoStream=(echo_stream, BIDI),
    SumStream=(sum_stream, {"client_streaming": True}),
    DivideStream=(divide_stream, {"server_streaming": True}),
    EchoNull=(null_stream, {"client_streaming": True}),
)


async def test_echo_stream_and_half_close() -> None:
    async with client_of(SERVICE) as client, client.stream("t", "EchoStream") as stream:
        for index in range(100):
            await stream.send(str(index).encode())
            assert await stream.receive() == str(index).encode()
        await stream.send(b"")
        await stream.send(b"a", bytearray(b"b"), memoryview(b"c"))
        stream.close_send()
        assert [message async for message in stream] == [b"", b"abc"]
        assert await stream.receive() is None
        with pytest.raises(status.TtrpcError) as caught:
            await stream.send(b"late")
        assert caught.value.code == status.FAILED_PRECONDITION


async def test_sum_stream() -> None:
    async with client_of(SERVICE) as client, client.stream("t", "SumStream") as stream:
        for index in range(50):
            await stream.send(str(index).encode())
        stream.close_send()
        assert await stream.receive() == b"1225"
        assert await stream.receive() is None


async def test_divide_stream_with_and_without_request_bytes() -> None:
    async with client_of(SERVICE) as client:
        stream = client.stream("t", "DivideStream", b"1/2/3")
        assert [message async for message in stream] == [b"1", b"2", b"3"]
        stream = client.stream("t", "DivideStream", b"")
        assert [message async for message in stream] == [b""]


async def test_empty_messages_and_empty_stream() -> None:
    async with client_of(SERVICE) as client:
        for count in (0, 3):
            async with client.stream("t", "EchoNull") as stream:
                for _ in range(count):
                    await stream.send(b"")
                stream.close_send()
                assert await stream.receive() == b""
                assert await stream.receive() is None


async def test_typed_bidirectional_stream() -> None:
    async def serve(stream: ServerStream, context: CallContext) -> None:
        first = await stream.receive()
        assert first is not None
        init = streaming_pb2.StreamInit.FromString(first.value)
        await stream.send(PbAny())
        async for message in stream:
            data = transfer_pb2.Data.FromString(message.value)
            message.value = transfer_pb2.Data(data=data.data + init.id.encode()).SerializeToString()
            await stream.send(message)

    async with client_of(build_service(STREAMING, {"Stream": serve})) as client:
        async with stub(client, STREAMING).Stream() as stream:
            init = streaming_pb2.StreamInit(id="-c1")
            await stream.send(PbAny(type_url="x.StreamInit", value=init.SerializeToString()))
            assert await stream.receive() == PbAny()
            data = transfer_pb2.Data(data=b"out")
            await stream.send(PbAny(type_url="x.Data", value=data.SerializeToString()))
            answer = await stream.receive()
            assert transfer_pb2.Data.FromString(answer.value).data == b"out-c1"
            stream.close_send()
            assert await stream.receive() is None
        async with stub(client, STREAMING).Stream() as stream:
            await stream.encoded.send(b"\xff")
            with pytest.raises(status.TtrpcError) as caught:
                await stream.receive()
            assert caught.value.code == status.INVALID_ARGUMENT


async def test_handler_fails_in_mid_stream() -> None:
    async def fail(stream: ServerStream, context: CallContext) -> None:
        await stream.send(b"one")
        raise status.TtrpcError(status.NOT_FOUND, "gone")

    async with (
        client_of(echo_service(M=(fail, BIDI))) as client,
        client.stream("t", "M") as stream,
    ):
        assert await stream.receive() == b"one"
        for _ in range(2):
            with pytest.raises(status.TtrpcError) as caught:
                await stream.receive()
            assert (caught.value.code, caught.value.message) == (status.NOT_FOUND, "gone")


async def test_server_ends_before_the_client_has_closed() -> None:
    async def end(stream: ServerStream, context: CallContext) -> None:
        assert await stream.receive() == b"go"

    async with client_of(echo_service(M=(end, BIDI))) as client:
        async with client.stream("t", "M") as stream:
            await stream.send(b"go")
            assert await stream.receive() is None
            with pytest.raises(status.TtrpcError):
                await stream.send(b"late")
        assert await client.call("t", "Echo", b"alive") == b"alive"


async def test_kinds_do_not_mix() -> None:
    async with client_of(SERVICE) as client:
        with pytest.raises(status.TtrpcError) as caught:
            await client.call("t", "EchoStream", b"")
        assert caught.value.code == status.INVALID_ARGUMENT
        for method in ("Echo", "DivideStream"):
            async with client.stream("t", method) as stream:
                with pytest.raises(status.TtrpcError) as caught:
                    await stream.receive()
                assert caught.value.code == status.INVALID_ARGUMENT
        assert await client.call("t", "Echo", b"alive") == b"alive"


async def test_oversized_stream_messages() -> None:
    async def big(stream: ServerStream, context: CallContext) -> None:
        await stream.send(bytes(MESSAGE_MAX + 1))

    async with (
        client_of(echo_service(M=(big, BIDI))) as client,
        client.stream("t", "M") as stream,
    ):
        with pytest.raises(status.TtrpcError) as caught:
            await stream.send(bytes(MESSAGE_MAX + 1))
        assert caught.value.code == status.RESOURCE_EXHAUSTED
        with pytest.raises(status.TtrpcError) as caught:
            await stream.receive()
        assert caught.value.code == status.RESOURCE_EXHAUSTED


async def test_a_stream_nobody_reads_is_given_up_and_blocks_nobody() -> None:
    released = trio.Event()
    seen: list[int] = []

    async def stuck(stream: ServerStream, context: CallContext) -> None:
        await released.wait()
        try:
            while (message := await stream.receive()) is not None:
                seen.append(len(message))
        except status.TtrpcError as error:
            seen.append(-error.code)
            raise

    service = echo_service(M=(stuck, BIDI))
    async with client_of(service, stream_buffer=1 << 20) as client:
        async with client.stream("t", "M") as stream:

            async def feed() -> None:
                while True:
                    await stream.send(bytes(100_000))
                    assert await client.call("t", "Echo", b"alive") == b"alive"

            with pytest.raises(status.TtrpcError) as caught:
                await feed()
            assert caught.value.code == status.FAILED_PRECONDITION
            with pytest.raises(status.TtrpcError) as caught:
                await stream.receive()
            assert caught.value.code == status.RESOURCE_EXHAUSTED
        released.set()
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [100_000] * 10 + [-status.RESOURCE_EXHAUSTED]


async def test_a_client_stream_nobody_reads_is_given_up() -> None:
    stopped = trio.Event()

    async def flood(stream: ServerStream, context: CallContext) -> None:
        try:
            while await stream.receive() is not None:
                for _ in range(60):
                    await stream.send(bytes(100_000))
        finally:
            stopped.set()

    async with (
        client_of(echo_service(M=(flood, BIDI))) as client,
        client.stream("t", "M") as stream,
    ):
        await stream.send(b"go")
        await stopped.wait()  # our end of the stream closes with it
        assert await client.call("t", "Echo", b"alive") == b"alive"
        sizes: list[int] = []

        async def read() -> None:
            while (message := await stream.receive()) is not None:
                sizes.append(len(message))

        with pytest.raises(status.TtrpcError) as caught:
            await read()
        assert caught.value.code == status.RESOURCE_EXHAUSTED
        assert 0 < sum(sizes) <= 4 << 20


async def test_bulk_both_ways_keeps_order_and_content() -> None:
    chunks = [os.urandom(size) for size in (1, 4096, 65536, 262144, 1 << 20, 0, 3)] * 4
    received: list[bytes] = []

    async with client_of(SERVICE) as client, client.stream("t", "EchoStream") as stream:

        async def read() -> None:
            received.extend([message async for message in stream])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for chunk in chunks:
                await stream.send(chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :])
            stream.close_send()
    assert received == chunks


async def test_a_sent_buffer_may_be_reused_at_once() -> None:
    """What does not fit the socket must not change under the writer."""
    ours, theirs = socket_pair()
    async with open_client(ours) as client, client.stream("t", "M") as stream:
        buffer = bytearray(200_000)
        with trio.move_on_after(0.5):
            for index in range(100):
                buffer[:] = bytes([index]) * len(buffer)
                await stream.send(buffer)
        peer = RawPeer(theirs)
        assert (await peer.frame() or (0,))[0] == 1
        for index in range(2):
            frame = await peer.frame()
            assert frame is not None
            assert frame[3] == bytes([index]) * len(buffer)
    await theirs.aclose()


async def test_a_client_that_takes_nothing_stops_its_stream_not_the_server() -> None:
    """Back-pressure with bounded memory: the handler waits in send."""
    sent = 0

    async def flood(request: bytes, stream: ServerStream, context: CallContext) -> None:
        nonlocal sent
        while True:
            await stream.send(bytes(65536))
            sent += 65536

    options = {"server_streaming": True, "cancel_on_disconnect": True}
    async with serving(Server([echo_service(M=(flood, options))])) as connect:
        slow = RawPeer(connect())
        await slow.send(encode_frame(1, REQUEST, 1, encode_request("t", "M", b"")))
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < sent < transport.HIGH_WATER + (2 << 20)
        async with open_client(connect()) as client:
            assert await client.call("t", "Echo", b"alive") == b"alive"
        before = sent
        for _ in range(40):
            frame = await slow.frame()
            assert frame is not None
            assert (frame[0], frame[1], len(frame[3])) == (1, DATA, 65536)
        await trio.testing.wait_all_tasks_blocked()
        assert sent > before
        await slow.stream.aclose()


async def test_a_client_that_takes_no_replies_gets_no_more_calls_served() -> None:
    served = 0

    def count(request: bytes, context: CallContext) -> bytes:
        nonlocal served
        served += 1
        return bytes(50_000)

    async with serving(Server([echo_service(M=count)])) as connect:
        peer = RawPeer(connect())
        frames = [
            encode_frame(2 * i + 1, REQUEST, 0, encode_request("t", "M", b"")) for i in range(2000)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, b"".join(frames))
            await trio.testing.wait_all_tasks_blocked()
            stalled = served
            for index in range(2000):
                stream_id, response = await peer.response()
                assert (stream_id, len(response.payload)) == (2 * index + 1, 50_000)
        assert stalled < 2000
        await peer.stream.aclose()


async def test_disconnect_ends_streams_on_both_sides() -> None:
    errors: list[Any] = []

    async def hold(stream: ServerStream, context: CallContext) -> None:
        try:
            await stream.receive()
        except ConnectionClosed as error:
            errors.append(error)
        with pytest.raises(ConnectionClosed):
            await stream.send(b"x")

    server = Server([echo_service(M=(hold, BIDI))])
    async with serving(server) as connect:
        async with open_client(connect()) as client:
            stream = client.stream("t", "M")
            await client.call("t", "Echo", b"")
        with pytest.raises(ConnectionClosed):
            await stream.receive()
        with pytest.raises(ConnectionClosed):
            await stream.send(b"x")
        with pytest.raises(ConnectionClosed):
            client.stream("t", "M")
        assert await server.drain(5)
    assert len(errors) == 1


async def test_many_streams_at_once() -> None:
    results: dict[int, int] = {}

    async with client_of(SERVICE) as client:

        async def run(index: int) -> None:
            async with client.stream("t", "EchoStream") as stream:
                total = 0
                for step in range(10):
                    await stream.send(struct.pack(">II", index, step))
                    reply = await stream.receive()
                    assert reply == struct.pack(">II", index, step)
                    total += step
                results[index] = total

        async with trio.open_nursery() as nursery:
            for index in range(200):
                nursery.start_soon(run, index)
    assert results == dict.fromkeys(range(200), 45)


async def test_data_frames_reach_only_calls_that_were_opened_as_streams() -> None:
    """containerd 1.6 knows no data frames: a plain request never gets one."""
    async with serving(Server([SERVICE])) as connect:
        peer = RawPeer(connect())
        for stream_id, method in ((1, "EchoStream"), (3, "DivideStream"), (5, "SumStream")):
            await peer.send(encode_frame(stream_id, REQUEST, 0, encode_request("t", method, b"1")))
            answered, response = await peer.response()
            assert (answered, response.code) == (stream_id, status.INVALID_ARGUMENT)
        request = encode_request("t", "SumStream", b"")
        await peer.send(encode_frame(7, REQUEST, FLAG_REMOTE_OPEN, request))
        await peer.send(encode_frame(7, DATA, 0, b"4") + encode_frame(7, DATA, 5, b""))
        answered, response = await peer.response()
        assert (answered, response.payload) == (7, b"4")
        await peer.stream.aclose()
