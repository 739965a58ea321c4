"""What a pod does when a client stops waiting, and when a process is no longer looked after."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.daemon import shut_down
from shim.errors import NotFound
from shim.events import Event, TaskDelete, TaskExit, TaskOOM
from shim.log import INFO, Log
from shim.pod.container import Container
from shim.pod.process import Exit, Process
from shim.pod.sandbox import Sandbox
from shim.pod.state import ProcessState
from shim.publisher import Publisher
from shim.requests import CreateContainer, StdioPaths
from shim.stages import Stages
from shim.stdio.stdio import Stdio
from shim.stdio.streaming import Streams

UNDO_SECONDS = 5.0
LOG = Log(-1, INFO, {})


class Case:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.sandbox = Sandbox(
            namespace="n",
            sandbox_id="c",
            config=Config(),
            ledger=cast(Any, None),
            runtime_dir=Path("/nowhere"),
            backends=cast(Any, None),
            publish=self.events.append,
            log=LOG,
            stages=Stages({}),
            direct=cast(Any, None),
            streams=Streams(),
        )

    def ended_container(self, container_id: str = "c") -> Container:
        """One that is there and has ended; undoing it takes a while."""
        cleanup = Rollback(LOG)

        async def undo() -> None:
            await trio.sleep(UNDO_SECONDS)

        cleanup.push("a thing", undo, timeout=2 * UNDO_SECONDS)
        made = Container(
            CreateContainer(container_id, "/b"), self.sandbox, 77, cleanup, self.events.append
        )
        made.init.lifecycle.move(ProcessState.CREATED)
        made.init.ended(Exit(3, 4), announce=True)
        self.sandbox._containers[container_id] = made
        return made


@pytest.fixture
def case() -> Case:
    return Case()


async def test_a_delete_that_nobody_waits_for_is_carried_to_its_end(
    case: Case, autojump_clock: MockClock
) -> None:
    case.ended_container()
    with trio.move_on_after(UNDO_SECONDS / 2):
        await case.sandbox.delete_container("c")
    assert case.sandbox.containers == {}
    assert [type(event) for event in case.events] == [TaskExit, TaskDelete]
    with pytest.raises(NotFound):
        await case.sandbox.delete_container("c")


async def test_ooms_are_told_once_a_second_and_only_of_containers(
    case: Case, autojump_clock: MockClock
) -> None:
    case.ended_container()
    case.events.clear()
    for _ in range(100):
        case.sandbox._oom("c")
        case.sandbox._oom("of another pod")
    assert case.events == [TaskOOM("c")]
    await trio.sleep(1)
    case.sandbox._oom("c")
    assert len(case.events) == 2


async def test_the_shim_ends_though_the_client_of_shutdown_is_gone() -> None:
    ending = trio.Event()

    async def stop() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)

    async def drain(_timeout: float) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0.005):
        await shut_down(
            cast(Sandbox, SimpleNamespace(stop=stop)),
            cast(Publisher, SimpleNamespace(drain=drain)),
            ending,
        )
    assert ending.is_set()


class Failing(Process):
    """One whose supervision fails as soon as its streams flow."""

    async def supervise(self, *_arguments: Any, task_status: Any) -> None:  # type: ignore[override]
        task_status.started()
        await trio.lowlevel.checkpoint()
        raise OSError("the disk of a log is gone")


async def test_a_failing_supervision_ends_its_process_and_not_the_pod(
    case: Case, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await nursery.start(case.sandbox.run)
    case.sandbox._vm = cast(Any, SimpleNamespace(agent=None))
    case.sandbox._place = cast(Any, SimpleNamespace(resources=SimpleNamespace(lost_status=print)))
    process = Failing("c", "", StdioPaths(), 77, case.events.append)
    process.lifecycle.move(ProcessState.CREATED)
    await case.sandbox.supervise(process, Stdio(None, {}), cast(Any, None))
    assert (await process.wait()).status == 255
    await trio.testing.wait_all_tasks_blocked()
    case.sandbox._vm = None
    await case.sandbox.stop()


async def test_containers_are_undone_at_once_when_the_pod_stops(
    case: Case, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(case.sandbox.run)
    for name in ("one", "two", "three"):
        case.ended_container(name)
    started = trio.current_time()
    await case.sandbox.stop()
    assert trio.current_time() - started == UNDO_SECONDS
    assert case.sandbox.containers == {}
