from __future__ import annotations

import os
from collections.abc import Coroutine, Iterator
from time import monotonic
from typing import Any

import pytest

from guest_agent.loop import Cancelled, Event, Lock, Loop, Nursery


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


def run(loop: Loop, main: Coroutine[Any, Any, Any]) -> Any:
    return loop.run(main)


def test_result_and_exception(loop: Loop) -> None:
    async def give() -> int:
        await loop.sleep(0)
        return 5

    async def fail() -> None:
        await loop.sleep(0)
        raise KeyError("x")

    assert run(loop, give()) == 5
    with pytest.raises(KeyError):
        run(loop, fail())


def test_timers_fire_in_order(loop: Loop) -> None:
    order: list[int] = []

    async def note(number: int) -> None:
        await loop.sleep(number / 100)
        order.append(number)

    async def main() -> None:
        async with Nursery(loop) as nursery:
            for number in (3, 1, 2):
                nursery.spawn(note(number))

    run(loop, main())
    assert order == [1, 2, 3]


def test_a_pipe_wakes_its_reader_and_its_writer(loop: Loop, pipe: tuple[int, int]) -> None:
    source, sink = pipe
    sent = os.urandom(1 << 20)
    got = bytearray()

    async def write() -> None:
        rest = memoryview(sent)
        while rest:
            try:
                rest = rest[os.write(sink, rest) :]
            except BlockingIOError:
                await loop.wait_writable(sink)

    async def read() -> None:
        while len(got) < len(sent):
            try:
                got.extend(os.read(source, 10_000))
            except BlockingIOError:
                await loop.wait_readable(source)

    async def main() -> None:
        loop.watch(source)
        loop.watch(sink)
        async with Nursery(loop) as nursery:
            nursery.spawn(write())
            nursery.spawn(read())

    run(loop, main())
    assert got == sent


def test_waiting_with_a_limit(loop: Loop, pipe: tuple[int, int]) -> None:
    async def main() -> tuple[bool, bool]:
        loop.watch(pipe[0])
        first = await loop.wait_readable(pipe[0], 0.01)
        os.write(pipe[1], b"x")
        return first, await loop.wait_readable(pipe[0], 10)

    assert run(loop, main()) == (False, True)


def test_a_hung_up_descriptor_does_not_spin(loop: Loop) -> None:
    source, sink = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(sink)
    wakes = 0

    async def watch() -> None:
        nonlocal wakes
        while True:
            await loop.wait_readable(source)
            wakes += 1

    async def main() -> None:
        loop.watch(source)
        async with Nursery(loop) as nursery:
            task = nursery.spawn(watch())
            await loop.sleep(0.05)
            task.cancel()

    run(loop, main())
    os.close(source)
    assert wakes <= 1


def test_forgetting_wakes_those_who_wait(loop: Loop, pipe: tuple[int, int]) -> None:
    async def wait() -> None:
        assert await loop.wait_readable(pipe[0])

    async def main() -> None:
        loop.watch(pipe[0])
        async with Nursery(loop) as nursery:
            nursery.spawn(wait())
            await loop.sleep(0.01)
            loop.forget(pipe[0])

    run(loop, main())


def test_event_pulse_and_set(loop: Loop) -> None:
    async def main() -> list[object]:
        event = Event(loop)
        seen: list[object] = [await event.wait(0.01)]

        async def wait() -> None:
            seen.append(await event.wait())

        async with Nursery(loop) as nursery:
            nursery.spawn(wait())
            await loop.sleep(0)
            event.pulse()
        seen.append(event.is_set)
        event.set()
        seen.append(await event.wait())
        return seen

    assert run(loop, main()) == [False, True, False, True]


def test_lock_is_fair_and_survives_cancellation(loop: Loop) -> None:
    order: list[str] = []

    async def hold(lock: Lock, name: str) -> None:
        async with lock:
            order.append(name)
            await loop.sleep(0.01)

    async def main() -> None:
        lock = Lock(loop)
        async with Nursery(loop) as nursery:
            nursery.spawn(hold(lock, "a"))
            doomed = nursery.spawn(hold(lock, "b"))
            nursery.spawn(hold(lock, "c"))
            await loop.sleep(0.005)
            doomed.cancel()
            nursery.spawn(hold(lock, "d"))

    run(loop, main())
    assert order == ["a", "c", "d"]


def test_a_lock_handed_to_a_cancelled_task_goes_on(loop: Loop) -> None:
    order: list[str] = []

    async def main() -> None:
        lock = Lock(loop)

        async def hold(name: str) -> None:
            async with lock:
                order.append(name)

        async with Nursery(loop) as nursery:
            async with lock:
                doomed = nursery.spawn(hold("b"))
                nursery.spawn(hold("c"))
                await loop.sleep(0.005)
            doomed.cancel()  # it was given the lock a moment ago, and has not run since

    run(loop, main())
    assert order == ["c"]


def test_a_failing_task_ends_the_nursery(loop: Loop) -> None:
    cancelled: list[str] = []

    async def linger() -> None:
        try:
            await loop.sleep(100)
        except Cancelled:
            cancelled.append("sibling")
            raise

    async def fail() -> None:
        await loop.sleep(0)
        raise ValueError("first")

    async def main() -> None:
        async with Nursery(loop) as nursery:
            nursery.spawn(linger())
            nursery.spawn(fail())
            try:
                await loop.sleep(100)
            except Cancelled:
                cancelled.append("block")
                raise

    with pytest.raises(ValueError, match="first"):
        run(loop, main())
    assert sorted(cancelled) == ["block", "sibling"]


def test_cancelling_a_task_cancels_its_nursery(loop: Loop) -> None:
    ended: list[str] = []

    async def inner() -> None:
        try:
            await loop.sleep(100)
        finally:
            ended.append("inner")

    async def outer() -> None:
        async with Nursery(loop) as nursery:
            nursery.spawn(inner())
        ended.append("not reached")

    async def main() -> None:
        async with Nursery(loop) as nursery:
            task = nursery.spawn(outer())
            await loop.sleep(0.01)
            task.cancel()

    run(loop, main())
    assert ended == ["inner"]


def test_cancel_after(loop: Loop) -> None:
    async def main() -> float:
        began = monotonic()
        async with Nursery(loop) as nursery:
            nursery.spawn(loop.sleep(100)).cancel_after(0.01)
        return monotonic() - began

    assert run(loop, main()) < 50
