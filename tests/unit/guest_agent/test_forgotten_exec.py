"""When the streams of an exec that was waited for are closed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guest_agent import container
from guest_agent.children import Exit
from guest_agent.container import Container, Runtime
from guest_agent.loop import Loop, Nursery
from guest_agent.process import Process
from guest_agent.rpc import Stream
from guest_agent.stdio import Input, Output

LINGER = 0.05
SIZE = 60_000


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(container, "_LINGER_SECONDS", LINGER)
    made = Loop()
    yield made
    made.close()


def _ended_exec(loop: Loop, nursery: Nursery) -> tuple[Container, Process]:
    """A container with an exec that wrote SIZE bytes and ended, none of them read."""
    ours, theirs = zip(*(os.pipe2(os.O_CLOEXEC) for _ in range(3)), strict=True)
    os.write(theirs[1], bytes(SIZE))
    for fd in (ours[0], theirs[1], theirs[2]):
        os.close(fd)
    streams = (Input(loop, theirs[0], False), Output(loop, ours[1]), Output(loop, ours[2]))
    ended = Exit(loop)
    ended.resolve(0)
    process = Process(loop, "e", 1, ended, streams)
    runtime = SimpleNamespace(loop=loop, background=nursery.spawn)
    made = Container(cast(Runtime, runtime), "c", {})
    made.execs["e"] = process
    return made, process


class SlowStream:
    """The host's end of a stream whose reader gives credit only after a long time."""

    def __init__(self, loop: Loop) -> None:
        self.got = 0
        self._loop = loop

    async def send(self, _message: dict[str, Any]) -> None:
        pass

    async def send_encoded(self, _head: bytes, data: Any) -> None:
        self.got += len(data) if isinstance(data, bytes) else len(os.read(data.fd, len(data)))

    async def receive(self) -> dict[str, Any]:
        await self._loop.sleep(4 * LINGER)
        return {"channel": 2, "credit": SIZE, "data": b"", "eof": False}


def test_a_reader_that_is_slow_but_attached_gets_everything(loop: Loop) -> None:
    stream = SlowStream(loop)

    async def main() -> None:
        async with Nursery(loop) as nursery:
            made, process = _ended_exec(loop, nursery)
            await made.wait("e")
            await process.attach(loop, cast(Stream, stream), 1000)
            await loop.sleep(3 * LINGER)
            assert made.execs == {}

    loop.run(main())
    assert stream.got == SIZE


def test_a_reader_that_asks_now_and_then_gets_everything(loop: Loop) -> None:
    got = 0

    async def main() -> None:
        nonlocal got
        async with Nursery(loop) as nursery:
            made, process = _ended_exec(loop, nursery)
            await made.wait("e")
            while data := await process.stdout.read(SIZE // 6):
                got += len(data)
                await loop.sleep(LINGER * 0.6)
            await loop.sleep(3 * LINGER)
            assert made.execs == {}

    loop.run(main())
    assert got == SIZE


def test_output_that_nobody_asks_for_is_dropped(loop: Loop) -> None:
    async def main() -> None:
        async with Nursery(loop) as nursery:
            made, process = _ended_exec(loop, nursery)
            await made.wait("e")
            await loop.sleep(4 * LINGER)
            assert made.execs == {}
            assert await process.stdout.read() == b""

    loop.run(main())


def test_an_exec_that_takes_its_id_leaves_it_its_output(loop: Loop, tmp_path: Path) -> None:
    got = 0

    async def main() -> None:
        nonlocal got
        async with Nursery(loop) as nursery:
            made, process = _ended_exec(loop, nursery)
            await made.wait("e")
            successor = _ended_exec(loop, nursery)[1]

            async def launch(*_arguments: object) -> Process:
                return successor

            made.bundle = str(tmp_path)
            made._runtime.launch = launch  # type: ignore[assignment]
            made._runtime.serial = lambda: 1  # type: ignore[method-assign]
            await made.exec("e", {}, b"{}")
            assert made.find("e") is successor
            while data := await process.stdout.read(SIZE // 6):
                got += len(data)
            await loop.sleep(3 * LINGER)
            assert made.execs == {"e": successor}
            assert process.stdin._fd == -1  # its streams are closed all the same
            successor.close()

    loop.run(main())
    assert got == SIZE


class LeavingStream(SlowStream):
    """The end of a host that lets go after the first bytes."""

    async def receive(self) -> None:  # type: ignore[override]
        await self._loop.sleep(LINGER)


def test_a_host_that_lets_go_holds_nothing_open(loop: Loop) -> None:
    async def main() -> None:
        async with Nursery(loop) as nursery:
            made, process = _ended_exec(loop, nursery)
            await made.wait("e")
            attached = nursery.spawn(process.attach(loop, cast(Stream, LeavingStream(loop)), 1000))
            await loop.sleep(4 * LINGER)
            assert attached.finished
            assert made.execs == {}
            assert process.stdin._fd == -1
            attached.cancel()

    loop.run(main())
