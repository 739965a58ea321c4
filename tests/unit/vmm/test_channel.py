from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from vmm.channel import (
    PREFACE_MAGIC,
    PREFACE_SIZE,
    EchoScanner,
    dial_hybrid,
    dial_serial,
    make_preface,
)
from vmm.errors import ChannelClosed, VmmError
from vmm.sockets import listen


def test_preface() -> None:
    first, second = make_preface(), make_preface()
    assert first != second
    assert first.startswith(PREFACE_MAGIC)
    assert len(first) == PREFACE_SIZE


@given(st.binary(max_size=200), st.data())
def test_scanner_finds_the_echo_after_anything(past: bytes, data: st.DataObject) -> None:
    scanner = EchoScanner()
    preface = make_preface()
    scanner.expect(preface)
    stream = past + preface + b"next"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
    found = [rest for piece in pieces if (rest := scanner.feed(piece)) is not None]
    assert found
    assert b"next".startswith(found[0])


def server(path: Path) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(listen(path)))


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece
        data += piece
    return data


async def test_serial_is_ready_after_the_last_echo(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with server(path) as listener, trio.open_nursery() as nursery:

        async def guest() -> None:
            async with await listener.accept() as stream:
                # Sleeps through the first preface, then answers all that piled up.
                first = await read_exactly(stream, PREFACE_SIZE)
                second = await read_exactly(stream, PREFACE_SIZE)
                assert first != second
                await stream.send_all(b"leftovers of a frame" + first)
                await stream.send_all(second[:10])
                await trio.testing.wait_all_tasks_blocked()
                await stream.send_all(second[10:])
                request = await read_exactly(stream, 4)
                await stream.send_all(request.upper())

        nursery.start_soon(guest)
        with trio.fail_after(10):
            async with await dial_serial(path) as stream:
                await stream.send_all(b"ping")
                assert await read_exactly(stream, 4) == b"PING"


async def test_serial_closed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(ChannelClosed):
        await dial_serial(path)
    async with server(path) as listener, trio.open_nursery() as nursery:

        async def close() -> None:
            await (await listener.accept()).aclose()

        nursery.start_soon(close)
        with trio.fail_after(10), pytest.raises(ChannelClosed):
            await dial_serial(path)


async def test_hybrid_retries_until_the_guest_listens(tmp_path: Path) -> None:
    path = tmp_path / "v"
    accepted = 0
    async with trio.open_nursery() as nursery:

        async def daemon() -> None:
            nonlocal accepted
            await trio.sleep(0.05)  # the dialler must stand a missing socket
            async with server(path) as listener:
                for number in range(3):
                    async with await listener.accept() as stream:
                        assert await read_exactly(stream, 13) == b"CONNECT 1024\n"
                        accepted += 1
                        if number == 2:
                            # The guest's first bytes may follow at once.
                            await stream.send_all(b"OK 1073741824\nhello")
                            await stream.receive_some(1)

        nursery.start_soon(daemon)
        with trio.fail_after(10):
            async with await dial_hybrid(path, 1024) as stream:
                assert await read_exactly(stream, 5) == b"hello"
    assert accepted == 3


@pytest.mark.parametrize("answer", [b"NO\n", b"OK no number\n", b"x" * 40])
async def test_hybrid_nonsense(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "v"
    async with server(path) as listener, trio.open_nursery() as nursery:

        async def daemon() -> None:
            async with await listener.accept() as stream:
                await stream.send_all(answer)
                await stream.receive_some(100)

        nursery.start_soon(daemon)
        with trio.fail_after(10), pytest.raises(VmmError, match="answered"):
            await dial_hybrid(path, 1024)
        nursery.cancel_scope.cancel()
