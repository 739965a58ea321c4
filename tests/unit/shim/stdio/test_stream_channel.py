"""The end of a stream, seen while what came on it is still being written."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from protos.katapy import extension_pb2
from shim.stdio.channel import WINDOW, GuestLost
from shim.stdio.frames import STDERR, STDOUT
from shim.stdio.stream_channel import SMALL, StreamChannel


class EndedStream:
    """A stream the guest has ended after a window full of output, not yet received by us."""

    def __init__(self, last: Exception | None = None) -> None:
        frame = extension_pb2.StdioFrame
        self._messages: list[bytes] = [
            frame(channel=STDOUT, data=bytes(WINDOW // 2)).SerializeToString(),
            frame(channel=STDOUT, data=bytes(WINDOW // 2)).SerializeToString(),
            frame(channel=STDOUT, eof=True).SerializeToString(),
            frame(channel=STDERR, eof=True).SerializeToString(),
        ]
        self._last = last
        self._attached = False

    async def send(self, data: bytes, /) -> None:
        if self._attached:
            raise trio.ClosedResourceError("the stream is closed for sending")
        self._attached = True

    async def receive(self) -> bytes | None:
        await trio.testing.wait_all_tasks_blocked()  # the reader is ahead of us
        if self._messages:
            return self._messages.pop(0)
        if self._last is not None:
            raise self._last
        return None

    def close_send(self) -> None:
        pass


class Client:
    def __init__(self, stream: EndedStream) -> None:
        self._stream = stream

    def stream(self, service: str, method: str, /) -> EndedStream:
        return self._stream


async def _read_all(channel: StreamChannel) -> int:
    total = 0
    while data := await channel.read(STDOUT):
        total += len(data)
        await channel.written(STDOUT, len(data))
    return total


async def test_credit_for_a_stream_that_ended_costs_no_output() -> None:
    channel = StreamChannel(Client(EndedStream()), "c")
    async with trio.open_nursery() as nursery:
        await nursery.start(channel.run)
        assert await _read_all(channel) == WINDOW


async def test_a_stream_that_broke_is_still_told_to_the_reader() -> None:
    stream = EndedStream(trio.BrokenResourceError("gone"))
    stream._messages = stream._messages[:1]
    channel = StreamChannel(Client(stream), "c")
    async with trio.open_nursery() as nursery:
        await nursery.start(channel.run)
        with pytest.raises(GuestLost, match="gone"):
            await _read_all(channel)


class ScriptedStream(EndedStream):
    """A stream that the guest fills as it likes."""

    def __init__(self, messages: list[bytes]) -> None:
        super().__init__()
        self._messages = messages

    async def receive(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._messages.pop(0) if self._messages else None


def output(data: bytes, *, eof: bool = False, name: str = "") -> bytes:
    frame = extension_pb2.StdioFrame(channel=STDOUT, data=data, eof=eof, container_id=name)
    return frame.SerializeToString()


async def test_small_pieces_that_wait_are_joined() -> None:
    messages = [output(bytes([n & 0xFF])) for n in range(10_000)]
    messages += [output(bytes(SMALL)), output(b"a"), output(b"b"), output(b"", eof=True)]
    channel = StreamChannel(Client(ScriptedStream(messages)), "c")
    async with trio.open_nursery() as nursery:
        await nursery.start(channel.run)
        await trio.testing.wait_all_tasks_blocked()
        assert channel._inbox[STDOUT].statistics().current_buffer_used == 3
        got = b""
        while data := await channel.read(STDOUT):
            got += data
        assert got == bytes(n & 0xFF for n in range(10_000)) + bytes(SMALL) + b"ab"


async def test_small_pieces_reach_a_reader_that_keeps_up() -> None:
    channel = StreamChannel(Client(ScriptedStream([output(b"a"), output(b"b")] * 50)), "c")
    got = b""
    async with trio.open_nursery() as nursery:
        await nursery.start(channel.run)
        while data := await channel.read(STDOUT):
            got += data
    assert got == b"ab" * 50


@pytest.mark.parametrize(
    "messages",
    [[output(b"x", name="n" * 1000)], [output(b"x"), output(b"", eof=True), output(b"y")]],
)
async def test_what_no_agent_sends_is_the_end_of_the_stream(messages: list[bytes]) -> None:
    channel = StreamChannel(Client(ScriptedStream(messages)), "c")
    async with trio.open_nursery() as nursery:
        await nursery.start(channel.run)
        await trio.testing.wait_all_tasks_blocked()
        assert channel._failure is not None
