"""A stream that is one copy, with a real connection between its ends."""

from __future__ import annotations

import pytest
import trio

from protos.containerd.streaming_pb2 import StreamInit
from protos.containerd.transfer_pb2 import Data, WindowUpdate
from shim.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from shim.stdio.stream_end import WINDOW
from shim.stdio.streaming import Streams
from shim.ttrpc.client import open_client
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError
from tests.unit.shim.stdio.test_streaming import SERVICE, data_of, packed, shim, window_of


async def test_bytes_are_read_to_the_clients_end() -> None:
    streams = Streams()
    async with shim(streams) as peer, peer.open("in") as client:
        stream = streams.one("in")
        content = bytes(range(256)) * 1000
        got = bytearray()

        async def read() -> None:
            while data := await stream.read():
                got.extend(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            credit, sent = 0, 0
            while sent < len(content):
                while not credit:
                    credit += await window_of(client)
                piece = content[sent : sent + min(credit, 10_000)]
                await client.send(packed(Data(data=piece)))
                sent, credit = sent + len(piece), credit - len(piece)
            client.close_send()
        assert bytes(got) == content
        assert await stream.read() == b"", "an end stays one"
        stream.close()


async def test_a_connection_that_breaks_is_no_end() -> None:
    streams = Streams()
    async with shim(streams) as peer:
        async with open_client(peer.connect()) as client:
            opened = stub(client, SERVICE).Stream()
            await opened.send(packed(StreamInit(id="in")))
            assert await opened.receive() is not None
            stream = streams.one("in")
            with trio.move_on_after(0.05):
                await stream.read()
            assert await window_of(opened) == WINDOW
            await opened.send(packed(Data(data=b"half")))
            assert await stream.read() == b"half"
        with pytest.raises(Unavailable, match="in"):
            await stream.read()
        stream.close()


async def test_bytes_are_written_as_the_client_takes_them() -> None:
    streams = Streams()
    async with shim(streams) as peer, peer.open("out") as client:
        stream = streams.one("out")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"x" * 10)
            await client.send(packed(WindowUpdate(update=4)))
            assert await data_of(client) == b"xxxx"
            await client.send(packed(WindowUpdate(update=100)))
            assert await data_of(client) == b"xxxxxx"
        stream.close()
        assert await client.receive() is None, "the end is behind what was written"


async def test_nothing_is_written_to_a_client_that_went_away() -> None:
    streams = Streams()
    async with shim(streams) as peer:
        async with peer.open("out"):
            stream = streams.one("out")
        with pytest.raises(Unavailable):
            await stream.write(b"x")
        stream.close()


async def test_a_client_that_breaks_the_protocol_is_told() -> None:
    streams = Streams()
    async with shim(streams) as peer, peer.open("in") as client:
        stream = streams.one("in")
        with trio.move_on_after(0.05):
            await stream.read()
        assert await window_of(client) == WINDOW
        await client.send(packed(Data(data=bytes(WINDOW + 1))))
        with pytest.raises(InvalidArgument, match="window"):
            await stream.read()
        with pytest.raises(TtrpcError):
            await client.receive()
        stream.close()


async def test_only_open_streams_can_be_taken_and_only_once() -> None:
    streams = Streams()
    with pytest.raises(NotFound):
        streams.one("none")
    async with shim(streams) as peer, peer.open("one"):
        stream = streams.one("one")
        with pytest.raises(AlreadyExists):
            streams.one("one")
        stream.close()
        with pytest.raises(NotFound):
            streams.one("one")
