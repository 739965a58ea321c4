"""Undo steps: their order, their deadlines, and callers that come at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing
from trio.testing import MockClock

from shim.cleanup.rollback import Rollback
from shim.log import INFO, Log

LOG = Log(-1, INFO, {})
STEP_SECONDS = 5.0


def noting(done: list[str], name: str, *, seconds: float = 0) -> Callable[[], Awaitable[None]]:
    async def undo() -> None:
        await trio.sleep(seconds)
        done.append(name)

    return undo


async def test_the_last_step_is_undone_first_and_each_once() -> None:
    done: list[str] = []
    rollback = Rollback(LOG)
    for name in ("first", "second"):
        rollback.push(name, noting(done, name))
    await rollback.unwind()
    await rollback.unwind()
    assert done == ["second", "first"]


async def test_a_step_that_fails_or_hangs_keeps_no_other_from_being_undone(
    autojump_clock: MockClock,
) -> None:
    async def fail() -> None:
        raise OSError("no")

    done: list[str] = []
    rollback = Rollback(LOG)
    rollback.push("it", noting(done, "it"))
    rollback.push("what fails", fail)
    rollback.push("what hangs", trio.sleep_forever, timeout=STEP_SECONDS)
    started = trio.current_time()
    await rollback.unwind()
    assert done == ["it"]
    assert trio.current_time() - started == STEP_SECONDS


async def test_who_comes_second_waits_for_the_first(autojump_clock: MockClock) -> None:
    done: list[str] = []
    rollback = Rollback(LOG)
    rollback.push("it", noting(done, "it", seconds=STEP_SECONDS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rollback.unwind)
        await trio.testing.wait_all_tasks_blocked()
        await rollback.unwind()
        assert done == ["it"]


async def test_an_unwinding_is_not_cut_short(autojump_clock: MockClock) -> None:
    done: list[str] = []
    rollback = Rollback(LOG)
    rollback.push("it", noting(done, "it", seconds=STEP_SECONDS))
    with trio.move_on_after(STEP_SECONDS / 2):
        await rollback.unwind()
    assert done == ["it"]
