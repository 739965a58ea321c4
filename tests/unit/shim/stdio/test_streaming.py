"""Stdio over streams, with the shim's end and containerd's windows on a real connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from protos.containerd import streaming_pb2
from protos.containerd.streaming_pb2 import StreamInit
from protos.containerd.transfer_pb2 import Data, WindowUpdate
from shim import translate
from shim.errors import AlreadyExists
from shim.stdio import streaming
from shim.stdio.stdio import open_stdio
from shim.stdio.stream_end import CHUNK, WINDOW
from shim.stdio.streaming import Streams
from shim.ttrpc import status
from shim.ttrpc.client import open_client
from shim.ttrpc.server import Server
from shim.ttrpc.service import MessageStream, build_service, stub
from tests.unit.shim.ttrpc.harness import serving

SERVICE = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]
URL = "ttrpc+unix:///run/s/1?streaming_id="


def packed(message: Message) -> PbAny:
    """As containerd packs it: the bare name, without a prefix."""
    return PbAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Peer:
    """containerd's side: one connection for each stream, as it does."""

    def __init__(self, connect: Any) -> None:
        self.connect = connect

    @asynccontextmanager
    async def open(self, stream_id: str) -> AsyncIterator[MessageStream]:
        async with open_client(self.connect()) as client, stub(client, SERVICE).Stream() as stream:
            await stream.send(packed(StreamInit(id=stream_id)))
            assert await stream.receive() is not None
            yield stream


@asynccontextmanager
async def shim(streams: Streams) -> AsyncIterator[Peer]:
    service = build_service(SERVICE, {"Stream": streams.serve})
    async with serving(Server([service], map_error=translate.error)) as connect:
        yield Peer(connect)


async def data_of(stream: MessageStream) -> bytes:
    message = await stream.receive()
    assert message is not None
    return Data.FromString(message.value).data


async def window_of(stream: MessageStream) -> int:
    message = await stream.receive()
    assert message is not None
    return WindowUpdate.FromString(message.value).update


async def test_output_keeps_to_the_readers_window_and_ends_with_the_process() -> None:
    streams = Streams()
    async with shim(streams) as peer, peer.open("c-stdout") as stream:
        sink = streams.sink("c-stdout")
        content = bytes(range(256)) * 400
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.write, content)
            got = b""
            while len(got) < len(content):
                await stream.send(packed(WindowUpdate(update=40_000)))
                allowed = len(got) + 40_000
                while len(got) < min(allowed, len(content)):
                    data = await data_of(stream)
                    assert len(data) <= CHUNK
                    got += data
                assert len(got) <= allowed
        assert got == content
        sink.close()
        assert await stream.receive() is None


async def test_the_end_is_settled_when_the_client_is_done_with_it() -> None:
    streams = Streams()
    sink = streams.sink("c-stdout")
    async with shim(streams) as peer, trio.open_nursery() as nursery:
        settled = trio.Event()

        async def settle() -> None:
            await sink.settle()
            settled.set()

        async with peer.open("c-stdout") as stream:
            nursery.start_soon(settle)
            assert await stream.receive() is None
            assert not settled.is_set(), "the client has not said that it has read all"
        await settled.wait()
        sink.close()


async def test_a_client_that_never_reads_to_the_end_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "SETTLE_TIMEOUT_S", 0.05)
    streams = Streams()
    sink = streams.sink("c-stdout")
    await sink.settle()
    async with shim(streams) as peer, peer.open("c-stdout"):
        await sink.settle()
        sink.close()


async def test_output_waits_for_a_reader_and_goes_on_with_the_next() -> None:
    streams = Streams()
    sink = streams.sink("c-stdout")
    async with shim(streams) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(sink.write, b"one")
        async with peer.open("c-stdout") as stream:
            await stream.send(packed(WindowUpdate(update=100)))
            assert await data_of(stream) == b"one"
        nursery.start_soon(sink.write, b"two")
        async with peer.open("c-stdout") as stream:
            await stream.send(packed(WindowUpdate(update=2)))
            assert await data_of(stream) == b"tw"
            await stream.send(packed(WindowUpdate(update=2)))
            assert await data_of(stream) == b"o"
            stream.close_send()  # it wants no more, and is told the end
            assert await stream.receive() is None
        sink.release()
        await sink.write(b"dropped: nobody reads, and the process is gone")


async def test_stdin_is_given_a_window_and_ends_by_close_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "CLOSE_GRACE_S", 0.05)
    streams = Streams()
    async with shim(streams) as peer:
        async with peer.open("c-stdin") as stream:
            source = streams.source("c-stdin")
            async with trio.open_nursery() as nursery:
                got: list[bytes] = []

                async def read() -> None:
                    got.append(await source.read())

                nursery.start_soon(read)
                assert await window_of(stream) == WINDOW
                await stream.send(packed(Data(data=b"a" * (WINDOW - 1))))
            assert got == [b"a" * (WINDOW - 1)]
            nursery_read = source.read()
            await stream.send(packed(Data(data=b"b")))
            assert await nursery_read == b"b"
            assert await window_of(stream) == WINDOW - 1
        # The client is away; the next one goes on.
        async with peer.open("c-stdin") as stream:
            assert await window_of(stream) == WINDOW
            await stream.send(packed(Data(data=b"last")))
            source.close_write()
            stream.close_send()
            assert await source.read() == b"last"
            assert await source.read() == b""
            source.close()


async def test_close_without_the_end_of_the_stream_ends_stdin_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "CLOSE_GRACE_S", 0.05)
    streams = Streams()
    source = streams.source("c-stdin")
    async with shim(streams) as peer, peer.open("c-stdin") as stream:
        source.close_write()
        assert await source.read() == b""
        source.close()
        assert await window_of(stream) == WINDOW
        assert await stream.receive() is None


@pytest.mark.parametrize(
    "message",
    [Data(data=b"x" * (WINDOW + 1)), WindowUpdate(update=-1), StreamInit(id="again")],
)
async def test_a_client_that_breaks_the_protocol_is_told(message: Message) -> None:
    streams = Streams()
    streams.source("c-stdin")
    async with shim(streams) as peer, peer.open("c-stdin") as stream:
        assert await window_of(stream) == WINDOW
        await stream.send(packed(message))
        with pytest.raises(status.TtrpcError) as caught:
            await stream.receive()
        assert caught.value.code == status.INVALID_ARGUMENT


@pytest.mark.parametrize("first", [Data(data=b"x"), StreamInit()])
async def test_a_stream_begins_with_its_id(first: Message) -> None:
    async with (
        shim(Streams()) as peer,
        open_client(peer.connect()) as client,
        stub(client, SERVICE).Stream() as stream,
    ):
        await stream.send(packed(first))
        with pytest.raises(status.TtrpcError) as caught:
            await stream.receive()
        assert caught.value.code == status.INVALID_ARGUMENT


async def test_open_stdio_takes_streams_and_gives_them_back() -> None:
    streams = Streams()

    async def opened(name: str) -> Any:
        return await open_stdio(
            f"{URL}{name}-stdin",
            f"{URL}{name}-stdout",
            f"{URL}{name}-stderr",
            False,
            container_id="c",
            namespace="n",
            streams=streams,
        )

    stdio = await opened("c")
    with pytest.raises(AlreadyExists):
        await opened("c")
    stdio.close()
    (await opened("c")).close()
    assert not streams._ends


async def test_streams_that_nobody_took_are_forgotten_and_ended() -> None:
    streams = Streams()
    async with shim(streams) as peer:
        async with peer.open("a"), peer.open("b") as stream:
            assert set(streams._ends) == {"a", "b"}
            streams.close()
            assert await stream.receive() is None
        assert not streams._ends
