"""``katapy exec`` with a guest that keeps to the protocol, and with one that does not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from protos.katapy import shim_pb2
from protos.katapy.extension_pb2 import ConsoleFrame
from shim.cli import exec as module
from shim.ttrpc.server import Server
from shim.ttrpc.service import build_service
from shim.ttrpc.status import TtrpcError

Guest = Callable[[Any], Any]


@asynccontextmanager
async def shim(folder: Path, guest: Guest) -> AsyncIterator[str]:
    """A shim's socket whose consoles are served by a function."""

    async def open_console(stream: Any, _context: object) -> None:
        await guest(stream)

    path = str(folder / "shim.sock")
    service = build_service(shim_pb2.DESCRIPTOR.services_by_name["Console"], {"Open": open_console})
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(Server([service]).serve, listener)
        yield path
        nursery.cancel_scope.cancel()


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Gives the command a standard input, of which it reads all."""

    def give(data: bytes) -> None:
        chunks = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        real = os.read

        def read(fd: int, size: int) -> bytes:
            if fd != 0:
                return real(fd, size)
            return chunks.pop(0)[:size] if chunks else b""

        monkeypatch.setattr(os, "read", read)

    return give


async def test_streams_credit_and_code(
    tmp_path: Path, stdin: Callable[[bytes], None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stdin(b"x" * 10000)
    seen: dict[str, Any] = {"stdin": b"", "credit": 0}

    async def guest(stream: Any) -> None:
        first = await stream.receive()
        seen["args"], seen["terminal"] = list(first.args), first.terminal
        await stream.send(ConsoleFrame(channel=1, credit=4096))
        while not (frame := await stream.receive()).eof:
            seen["stdin"] += frame.data
            assert len(seen["stdin"]) <= 4096 + seen["credit"], "more than there was credit for"
            seen["credit"] += len(frame.data)
            await stream.send(ConsoleFrame(channel=1, credit=len(frame.data)))
        await stream.send(ConsoleFrame(channel=2, data=b"out"))
        await stream.send(ConsoleFrame(channel=3, data=b"err"))
        assert {(await stream.receive()).credit, (await stream.receive()).credit} == {3}
        await stream.send(ConsoleFrame(exited=True, exit_code=9))

    async with shim(tmp_path, guest) as path:
        assert await module._attach(path, ["ls", "-l"], False) == 9
    assert seen["args"] == ["ls", "-l"]
    assert not seen["terminal"]
    assert seen["stdin"] == b"x" * 10000
    assert capfdbinary.readouterr() == (b"out", b"err")


async def test_a_guest_writes_to_no_other_descriptor(
    tmp_path: Path, stdin: Callable[[bytes], None]
) -> None:
    stdin(b"")
    target = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)

    async def guest(stream: Any) -> None:
        await stream.send(ConsoleFrame(channel=target + 1, data=b"overwritten"))
        await stream.send(ConsoleFrame(channel=0, data=b"?"))
        await stream.send(ConsoleFrame(exited=True, exit_code=0x1_00_01))

    async with shim(tmp_path, guest) as path:
        assert await module._attach(path, [], False) == 1
    os.close(target)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("nonsense", [b"\xff\xff", b"\x22\xff"])
async def test_a_guest_that_talks_nonsense_or_just_ends(
    tmp_path: Path, stdin: Callable[[bytes], None], nonsense: bytes
) -> None:
    stdin(b"")

    async def talk(stream: Any) -> None:
        await stream.send_encoded(nonsense)

    async def end(_stream: Any) -> None:
        return

    async with shim(tmp_path, talk) as path:
        outcome = await module._attach(path, [], False)
        assert isinstance(outcome, TtrpcError)
        assert "nonsense" in outcome.message
    os.unlink(path)
    async with shim(tmp_path, end) as path:
        assert await module._attach(path, [], False) == 255
