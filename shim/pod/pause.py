"""The pause container of a pod, which is there for the client's sake alone.

The VM is the sandbox and holds what a pause process would hold, so none runs: this is
the host's side of one. It ends by a signal as the usual pause program does (status 0 on
SIGINT and SIGTERM, 128 + n on others), or with the VM; and its end is the VM's.

Source: kubernetes build/pause/linux/pause.c.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from protos.kata import agent_pb2
from shim.cleanup.rollback import Rollback
from shim.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from shim.events import Publish, TaskStart
from shim.pod.container import Container, Pod
from shim.pod.process import LOST_EXIT_STATUS, Exit, Process
from shim.pod.state import ProcessState
from shim.requests import CreateContainer, ExecProcess

SIGINT, SIGKILL, SIGTERM = 2, 9, 15
_PROBE = 0
_SIGNAL_MAX = 64
# What ends a first process of a pid namespace, which ignores what it has no handler for.
_DEADLY = {SIGINT: 0, SIGTERM: 0, SIGKILL: 128 + SIGKILL}


class PauseContainer(Container):
    """A pod's pause container.

    Args:
        request: what the client asked for.
        pod: the sandbox it stands for.
        pid: the host process that stands for it, the VMM.
        cleanup: what to undo when it is deleted.
        publish: takes its events.
    """

    def __init__(
        self,
        request: CreateContainer,
        pod: Pod,
        pid: int,
        cleanup: Rollback,
        publish: Publish,
    ) -> None:
        super().__init__(request, pod, pid, cleanup, publish, trio.lowlevel.checkpoint)
        self._killed = trio.Event()
        self._status = LOST_EXIT_STATUS
        self.init.lifecycle.move(ProcessState.CREATED)

    async def run(self, vm_gone: trio.Event, end_vm: Callable[[], Awaitable[None]]) -> None:
        """Wait for its end and announce it, when the VM has gone.

        Args:
            vm_gone: set when there is no VM any more.
            end_vm: ends the VM.
        """
        async with trio.open_nursery() as nursery:

            async def when_gone() -> None:
                await vm_gone.wait()
                self._killed.set()

            nursery.start_soon(when_gone)
            await self._killed.wait()
            nursery.cancel_scope.cancel()
        try:
            await end_vm()
        finally:
            self.init.ended(Exit(self._status, time.time_ns()), announce=True)

    async def start(self, exec_id: str) -> Process:
        """Run it (empty ``exec_id``).

        Raises:
            FailedPrecondition: it was started before.
            NotFound: an exec is asked for, and there is none.
        """
        if exec_id:
            raise NotFound(f"exec {exec_id} of container {self.id} does not exist")
        self.init.lifecycle.require("start", ProcessState.CREATED)
        self.init.lifecycle.move(ProcessState.RUNNING)
        self._publish(TaskStart(self.id, self.init.pid))
        return self.init

    async def kill(self, exec_id: str, signal: int, *, everything: bool) -> None:
        """Signal it.

        Raises:
            NotFound: it has ended.
            InvalidArgument: there is no such signal.
        """
        if exec_id:
            self.process(exec_id)
        if self.init.state is ProcessState.STOPPED:
            raise NotFound(f"{self.id}: process already finished")
        if not _PROBE <= signal <= _SIGNAL_MAX:
            raise InvalidArgument(f"{signal} is no signal")
        if signal in _DEADLY:
            self._status = _DEADLY[signal]
            self._killed.set()

    def add_exec(self, request: ExecProcess) -> None:
        """Refuse.

        Raises:
            FailedPrecondition: always.
        """
        raise FailedPrecondition(
            f"exec {request.exec_id}: {self.id} is the pod's pause container, "
            "which has no process in the VM"
        )

    async def pause(self) -> None:
        """Refuse.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented(f"{self.id} is the pod's pause container: pause its members")

    async def resume(self) -> None:
        """Refuse.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented(f"{self.id} is the pod's pause container: resume its members")

    async def resize(self, exec_id: str, width: int, height: int) -> None:
        """Do nothing: it has no terminal."""
        self.process(exec_id)

    async def update(self, resources: dict[str, Any], cpus: str) -> None:
        """Refuse.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented(f"{self.id} is the pod's pause container, which uses nothing")

    async def stats(self) -> agent_pb2.StatsContainerResponse:
        """Refuse.

        Raises:
            NotFound: always; clients take it for a container without a cgroup.
        """
        raise NotFound(f"container {self.id} is the pod's pause container: it has no cgroup")

    async def _end_unstarted(self) -> None:
        self._status = 128 + SIGKILL
        self._killed.set()
        await self.init.wait()
