"""A container's states while its calls are cut short, against a scripted agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from shim.agent import Agent
from shim.cleanup.rollback import Rollback
from shim.errors import FailedPrecondition
from shim.events import (
    Event,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskExit,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from shim.log import INFO, Log
from shim.pod.container import Container
from shim.pod.process import Exit, Process
from shim.pod.state import ProcessState
from shim.requests import CreateContainer, ExecProcess
from shim.stdio.stdio import Stdio

GUEST_SECONDS = 5.0


class SlowAgent:
    """Each call takes GUEST_SECONDS and then has been done, whoever still waits for it."""

    features: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def call(*_arguments: object) -> None:
            await trio.sleep(GUEST_SECONDS)
            self.done.append(name)

        return call


class FakePod:
    """A pod with that agent, which looks after nobody."""

    def __init__(self) -> None:
        self.slow = SlowAgent()
        self.supervised: list[Process] = []
        self.settling = 0.0

    @property
    def agent(self) -> Agent:
        return cast(Agent, self.slow)

    async def open_stdio(self, container_id: str, request: CreateContainer | ExecProcess) -> Stdio:
        return Stdio(None, {})

    async def supervise(
        self, process: Process, stdio: Stdio, before_exit: Callable[[], Awaitable[None]]
    ) -> None:
        self.supervised.append(process)

    async def settle_network(self) -> None:
        await trio.sleep(self.settling)


class Case:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pod = FakePod()
        self.cleanup = Rollback(Log(-1, INFO, {}))
        request = CreateContainer("c", "/bundle")
        self.container = Container(request, self.pod, 77, self.cleanup, self.events.append)
        self.container.init.lifecycle.move(ProcessState.CREATED)

    @property
    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.fixture
def running(case: Case) -> Case:
    case.container.init.lifecycle.move(ProcessState.RUNNING)
    return case


async def cut_short(call: Callable[..., Awaitable[Any]], *arguments: object) -> None:
    """Make a call as for a client whose deadline passes while the guest is at work."""
    with trio.move_on_after(GUEST_SECONDS / 2):
        await call(*arguments)


def an_exec(exec_id: str = "e") -> ExecProcess:
    return ExecProcess("c", exec_id, {"args": ["true"], "cwd": "/"})


async def test_a_start_that_nobody_waits_for_is_noted(
    case: Case, autojump_clock: MockClock
) -> None:
    await cut_short(case.container.start, "")
    assert case.pod.slow.done == ["start_container"]
    assert case.container.init.state is ProcessState.RUNNING
    assert case.kinds == [TaskStart]


async def test_a_start_that_is_given_up_before_the_guest_knows_changes_nothing(
    case: Case, autojump_clock: MockClock
) -> None:
    case.pod.settling = GUEST_SECONDS
    with trio.move_on_after(1):
        await case.container.start("")
    assert case.container.init.state is ProcessState.CREATED
    assert case.events == []


async def test_an_exec_whose_start_nobody_waits_for_is_looked_after(
    running: Case, autojump_clock: MockClock
) -> None:
    running.container.add_exec(an_exec())
    await cut_short(running.container.start, "e")
    process = running.container.process("e")
    assert running.pod.slow.done == ["exec_process"]
    assert process.state is ProcessState.RUNNING
    assert running.pod.supervised == [process]
    assert running.kinds == [TaskExecAdded, TaskExecStarted]


async def test_an_exec_is_not_deleted_while_it_is_being_started(
    running: Case, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    running.container.add_exec(an_exec())
    nursery.start_soon(running.container.start, "e")
    await trio.sleep(GUEST_SECONDS / 2)
    with pytest.raises(FailedPrecondition, match="being started"):
        running.container.delete_exec("e")
    await trio.sleep(GUEST_SECONDS)
    assert running.container.process("e").state is ProcessState.RUNNING


async def test_a_terminals_size_may_come_before_its_exec_is_started(
    running: Case, autojump_clock: MockClock
) -> None:
    request = an_exec()
    running.container.add_exec(request)
    await running.container.resize("e", 132, 43)
    assert running.pod.slow.done == []  # the guest knows no such process yet
    assert request.process["consoleSize"] == {"height": 43, "width": 132}


async def test_pause_and_resume_that_nobody_waits_for(
    running: Case, autojump_clock: MockClock
) -> None:
    running.container.add_exec(an_exec())
    await running.container.start("e")
    await cut_short(running.container.pause)
    assert running.container.init.state is ProcessState.PAUSED
    assert running.container.state("e") is ProcessState.PAUSED
    await cut_short(running.container.resume)
    assert running.container.state("") is running.container.state("e") is ProcessState.RUNNING
    assert running.kinds[-2:] == [TaskPaused, TaskResumed]


async def test_the_end_of_one_who_was_never_announced_is_no_event(
    case: Case, autojump_clock: MockClock
) -> None:
    process = Process("c", "", CreateContainer("c", "/b").stdio, 77, case.events.append)
    announced = case.container.init
    for one in (process, announced):
        one.ended(Exit(1, 2), announce=one.state is not ProcessState.NEW)
    assert [event for event in case.events if isinstance(event, TaskExit)] == case.events
    assert len(case.events) == 1


async def test_deleting_undoes_everything_and_says_so_last(
    case: Case, autojump_clock: MockClock
) -> None:
    undone = trio.Event()

    async def undo() -> None:
        await trio.sleep(GUEST_SECONDS)
        undone.set()

    case.cleanup.push("a thing", undo, timeout=10)
    case.container.init.ended(Exit(3, 4), announce=True)
    await case.container.delete()
    assert undone.is_set()
    assert case.kinds == [TaskExit, TaskDelete]
