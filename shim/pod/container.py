"""One container of a pod: its init, its execs, and what may be done to them when."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import trio

from protos.kata import agent_pb2
from shim.agent import Agent
from shim.cleanup.rollback import Rollback
from shim.errors import AlreadyExists, FailedPrecondition, KatapyError, NotFound, Unavailable
from shim.events import (
    Publish,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from shim.oci.guest_spec import guest_process
from shim.oci.resources import GuestLimits, guest_resources
from shim.pod.process import Process
from shim.pod.state import ProcessState
from shim.requests import CreateContainer, ExecProcess
from shim.stdio.stdio import Stdio
from shim.ttrpc.status import TtrpcError

STATS_TIMEOUT_S = 10.0
# How long the end of init waits for the ends of its execs, which die with it.
EXEC_END_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0
SIGKILL = 9


class Pod(Protocol):
    """What a container needs of the pod it is in."""

    @property
    def agent(self) -> Agent:
        """The guest's agent; raises Unavailable when the VM is gone."""
        ...

    async def open_stdio(self, container_id: str, request: CreateContainer | ExecProcess) -> Stdio:
        """Open the host ends of a process's streams."""
        ...

    async def supervise(
        self, process: Process, stdio: Stdio, before_exit: Callable[[], Awaitable[None]]
    ) -> None:
        """Have a process's streams and exit looked after for as long as it lives."""
        ...

    async def settle_network(self) -> None:
        """Have the guest's links be what the pod's are now."""
        ...


class Container:
    """A container that exists in the guest.

    Args:
        request: what the client asked for.
        pod: the sandbox it is in.
        pid: the host process that stands for it, the VMM.
        cleanup: what to undo when it is deleted.
        publish: takes its events.
        started: called after init was started, before its start is announced.
    """

    def __init__(
        self,
        request: CreateContainer,
        pod: Pod,
        pid: int,
        cleanup: Rollback,
        publish: Publish,
        started: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.id = request.container_id
        self.bundle = request.bundle
        self.init = Process(self.id, "", request.stdio, pid, publish)
        self._pod = pod
        self._cleanup = cleanup
        self._publish = publish
        self._started = started or _nothing
        self._execs: dict[str, tuple[Process, ExecProcess]] = {}
        self.deleting = False

    def process(self, exec_id: str) -> Process:
        """Find init (empty id) or an exec.

        Raises:
            NotFound: when there is no such exec.
        """
        if not exec_id:
            return self.init
        try:
            return self._execs[exec_id][0]
        except KeyError:
            raise NotFound(f"exec {exec_id} of container {self.id} does not exist") from None

    def state(self, exec_id: str) -> ProcessState:
        """Where init (empty id) or an exec stands; a frozen container's execs are so too.

        Raises:
            NotFound: when there is no such exec.
        """
        state = self.process(exec_id).state
        frozen = self.init.state is ProcessState.PAUSED
        return ProcessState.PAUSED if frozen and state is ProcessState.RUNNING else state

    def running_execs(self) -> list[Process]:
        """The execs that run now."""
        return [
            process for process, _ in self._execs.values() if process.state is ProcessState.RUNNING
        ]

    async def start(self, exec_id: str) -> Process:
        """Run init (empty id) or an exec.

        Raises:
            FailedPrecondition: when it was started before, or init does not run.
            NotFound: when there is no such exec.
        """
        if exec_id:
            return await self._start_exec(exec_id)
        init = self.init
        async with init.starting:
            init.lifecycle.require("start", ProcessState.CREATED)
            # Links attached between Create and Start are there when init looks.
            await self._pod.settle_network()
            with trio.CancelScope(shield=True):  # what the guest has begun is noted here too
                await self._pod.agent.start_container(self.id)
                init.lifecycle.move(ProcessState.RUNNING)
                await self._started()
                self._publish(TaskStart(self.id, init.pid))
        return init

    async def _start_exec(self, exec_id: str) -> Process:
        process = self.process(exec_id)
        request = self._execs[exec_id][1]
        async with process.starting:
            process.lifecycle.require("start", ProcessState.CREATED)
            self.init.lifecycle.require(f"start exec {exec_id} in", ProcessState.RUNNING)
            try:
                stdio = await self._pod.open_stdio(self.id, request)
                with trio.CancelScope(shield=True):  # as in `start`
                    await self._run_exec(process, request, stdio)
            except Exception:
                process.start_failed()
                raise
            process.lifecycle.move(ProcessState.RUNNING)
            self._publish(TaskExecStarted(self.id, exec_id, process.pid))
        return process

    async def _run_exec(self, process: Process, request: ExecProcess, stdio: Stdio) -> None:
        try:
            spec = guest_process(request.process)
            await self._pod.agent.exec_process(self.id, process.exec_id, spec)
            await self._pod.supervise(process, stdio, _nothing)
        except BaseException:
            await stdio.aclose()
            raise

    def add_exec(self, request: ExecProcess) -> None:
        """Register an exec; :meth:`start` runs it.

        Raises:
            AlreadyExists: when the exec id is taken.
            FailedPrecondition: when init does not run.
        """
        if request.exec_id in self._execs:
            raise AlreadyExists(f"exec {request.exec_id} of container {self.id} exists already")
        self.init.lifecycle.require(f"exec {request.exec_id} in", ProcessState.RUNNING)
        process = Process(self.id, request.exec_id, request.stdio, self.init.pid, self._publish)
        process.lifecycle.move(ProcessState.CREATED)
        self._execs[request.exec_id] = (process, request)
        self._publish(TaskExecAdded(self.id, request.exec_id))

    def delete_exec(self, exec_id: str) -> Process:
        """Forget an exec that has ended or was never started.

        Raises:
            FailedPrecondition: while it runs or is being started.
            NotFound: when there is no such exec.
        """
        process = self.process(exec_id)
        process.lifecycle.require("delete", ProcessState.STOPPED, ProcessState.CREATED)
        if process.starting.locked():
            raise FailedPrecondition(f"cannot delete exec {exec_id}: it is being started")
        del self._execs[exec_id]
        if process.state is ProcessState.CREATED:
            process.never_started()
        return process

    async def delete(self) -> None:
        """Undo everything the container had; init must have ended or never been started.

        Raises:
            FailedPrecondition: while it runs.
        """
        init = self.init
        init.lifecycle.require("delete", ProcessState.STOPPED, ProcessState.CREATED)
        self.deleting = True
        if init.state is ProcessState.CREATED:
            await self._end_unstarted()
        await self.abandon()
        how = await init.wait()
        self._publish(TaskDelete(self.id, init.pid, how.status, how.at_ns))

    async def abandon(self) -> None:
        """Undo everything, whatever state it is in; nothing is published."""
        await self._cleanup.unwind()
        for process, _ in self._execs.values():
            if process.state is ProcessState.CREATED:
                process.never_started()

    async def _end_unstarted(self) -> None:
        try:
            with trio.fail_after(KILL_TIMEOUT_S):
                await self._pod.agent.signal(self.id, "", SIGKILL)
                await self.init.wait()
        except (KatapyError, TtrpcError, trio.TooSlowError):
            # The guest is gone or hangs; the container's end is what is asked for.
            self.init.lost()

    async def end_execs(self) -> None:
        """Wait, for a bounded time, until the running execs have ended too."""
        with trio.move_on_after(EXEC_END_TIMEOUT_S):
            for process in self.running_execs():
                await process.wait()

    async def pause(self) -> None:
        """Freeze every process.

        Raises:
            FailedPrecondition: unless it runs.
        """
        self.init.lifecycle.require("pause", ProcessState.RUNNING)
        with trio.CancelScope(shield=True):  # as in `start`
            await self._pod.agent.pause(self.id)
            self.init.lifecycle.move(ProcessState.PAUSED)
            self._publish(TaskPaused(self.id))

    async def resume(self) -> None:
        """Thaw every process.

        Raises:
            FailedPrecondition: unless it is paused.
        """
        self.init.lifecycle.require("resume", ProcessState.PAUSED)
        with trio.CancelScope(shield=True):  # as in `start`
            await self._pod.agent.resume(self.id)
            self.init.lifecycle.move(ProcessState.RUNNING)
            self._publish(TaskResumed(self.id))

    async def kill(self, exec_id: str, signal: int, *, everything: bool) -> None:
        """Send a signal to init or an exec, or to everything in the container.

        Raises:
            NotFound: it has ended, or its VM has, which clients take for done.
            FailedPrecondition: it is an exec not yet started.
        """
        process = self.process(exec_id)
        try:
            agent = self._pod.agent
        except Unavailable as err:
            raise NotFound(f"{process.event_id}: process already finished: {err}") from err
        await process.kill(agent, signal, everything=everything and not exec_id)

    async def resize(self, exec_id: str, width: int, height: int) -> None:
        """Set a terminal's size in characters; an exec not yet started will have it then."""
        process = self.process(exec_id)
        if exec_id and process.state is ProcessState.CREATED:
            request = self._execs[exec_id][1]
            request.process["consoleSize"] = {"height": height, "width": width}
        elif process.state is not ProcessState.STOPPED:
            await process.resize(self._pod.agent, width, height)

    async def update(self, resources: dict[str, Any], cpus: str) -> None:
        """Apply new limits in the guest.

        Args:
            resources: OCI ``linux.resources``.
            cpus: the guest's CPUs that stand for the host's CPU set, empty to leave it.

        Raises:
            FailedPrecondition: it has ended.
        """
        self.require_alive("update")
        agent = self._pod.agent
        limits = GuestLimits.of_features(agent.features)
        await agent.update(self.id, guest_resources(resources, limits=limits, cpus=cpus))

    def require_alive(self, action: str) -> None:
        """Raise FailedPrecondition when it has ended; ``action`` is named in the error."""
        self.init.lifecycle.require(
            action, ProcessState.CREATED, ProcessState.RUNNING, ProcessState.PAUSED
        )

    async def stats(self) -> agent_pb2.StatsContainerResponse:
        """Read the counters.

        Raises:
            NotFound: when it has ended, and its cgroup with it.
        """
        if self.init.state is ProcessState.STOPPED:
            raise NotFound(f"container {self.id} has ended: it has no cgroup")
        return await self._pod.agent.stats(self.id, STATS_TIMEOUT_S)


async def kill_all(containers: Iterable[Container]) -> None:
    """Kill every process of containers that run, and wait for their ends."""
    live = [c for c in containers if c.init.state in (ProcessState.RUNNING, ProcessState.PAUSED)]
    for container in live:
        with contextlib.suppress(KatapyError, TtrpcError):  # it has ended meanwhile
            await container.kill("", SIGKILL, everything=True)
    for container in live:
        await container.init.wait()


async def _nothing() -> None:
    pass
