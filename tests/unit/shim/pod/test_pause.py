"""The pause container that is on the host alone."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from shim.cleanup.rollback import Rollback
from shim.errors import FailedPrecondition, InvalidArgument, NotFound
from shim.events import Event, TaskDelete, TaskExit, TaskStart
from shim.log import INFO, Log
from shim.pod.container import Pod
from shim.pod.pause import PauseContainer
from shim.requests import CreateContainer, ExecProcess


class Case:
    """A pause container with its VM."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.vm_gone = trio.Event()
        # It has nothing in the VM, so it asks nothing of the pod.
        self.pause = PauseContainer(
            CreateContainer("p", "/bundle"),
            cast(Pod, None),
            77,
            Rollback(Log(-1, INFO, {})),
            self.events.append,
        )

    async def end_vm(self) -> None:
        await trio.lowlevel.checkpoint()
        self.vm_gone.set()

    async def run(self) -> None:
        await self.pause.run(self.vm_gone, self.end_vm)


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.mark.parametrize(("signal", "status"), [(9, 137), (15, 0), (2, 0)])
async def test_signals_end_it_and_the_vm(
    case: Case, nursery: trio.Nursery, signal: int, status: int
) -> None:
    nursery.start_soon(case.run)
    await case.pause.start("")
    await case.pause.kill("", signal, everything=True)
    assert (await case.pause.init.wait()).status == status
    assert case.vm_gone.is_set()
    await case.pause.delete()
    assert [type(event) for event in case.events] == [TaskStart, TaskExit, TaskDelete]
    with pytest.raises(NotFound, match="already finished"):
        await case.pause.kill("", 9, everything=False)


@pytest.mark.parametrize("signal", [0, 1, 10, 28])
async def test_other_signals_do_not(case: Case, nursery: trio.Nursery, signal: int) -> None:
    nursery.start_soon(case.run)
    await case.pause.start("")
    await case.pause.kill("", signal, everything=False)
    await trio.testing.wait_all_tasks_blocked()
    assert not case.pause.init.exited.is_set()
    nursery.cancel_scope.cancel()


async def test_it_ends_with_the_vm(case: Case, nursery: trio.Nursery) -> None:
    nursery.start_soon(case.run)
    await case.pause.start("")
    case.vm_gone.set()
    assert (await case.pause.init.wait()).status == 255


async def test_deleted_before_it_was_started(case: Case, nursery: trio.Nursery) -> None:
    nursery.start_soon(case.run)
    await case.pause.delete()
    assert case.vm_gone.is_set()


async def test_what_it_refuses(case: Case) -> None:
    with pytest.raises(FailedPrecondition, match="pause container"):
        case.pause.add_exec(ExecProcess("p", "e", {}))
    with pytest.raises(NotFound, match="no cgroup"):
        await case.pause.stats()
    with pytest.raises(NotFound):
        await case.pause.start("e")
    with pytest.raises(InvalidArgument, match="99 is no signal"):
        await case.pause.kill("", 99, everything=False)
    await case.pause.start("")
    with pytest.raises(FailedPrecondition, match="cannot start container p"):
        await case.pause.start("")
    with pytest.raises(FailedPrecondition, match="cannot delete"):
        await case.pause.delete()
