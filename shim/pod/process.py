"""One process in the guest, a container's init or an exec, seen from the host.

Its streams and its exit are supervised by one task in the sandbox's nursery, so
that they outlive the call that started it. State is answered from here and never
waits on the guest.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from shim.agent import Agent
from shim.errors import NotFound
from shim.events import Publish, TaskExit
from shim.pod.state import PROCESS_TRANSITIONS, Lifecycle, ProcessState
from shim.requests import StdioPaths
from shim.stdio.relay import Relay
from shim.stdio.stdio import Stdio
from shim.ttrpc.status import TtrpcError

# What Kata reports for a process whose VM went away under it; no signal reached it.
LOST_EXIT_STATUS = 255
# SIGKILL, by which the OOM killer ends a process.
OOM_EXIT_STATUS = 137
# What a shell says of a command that could not be started.
FAILED_START_STATUS = 127


@dataclass(frozen=True, slots=True)
class Exit:
    """How and when a process ended."""

    status: int
    at_ns: int


class Process:
    """A container's init or an exec.

    Args:
        container_id: the container it belongs to.
        exec_id: its id there; empty for init.
        paths: where its streams go, echoed in State.
        pid: the host process that stands for it, the VMM.
        publish: takes its events.
    """

    def __init__(
        self, container_id: str, exec_id: str, paths: StdioPaths, pid: int, publish: Publish
    ) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.paths = paths
        self.pid = pid
        self.exit: Exit | None = None
        self.exited = trio.Event()
        what = f"exec {exec_id} of container {container_id}" if exec_id else container_id
        self.lifecycle = Lifecycle(
            what if exec_id else f"container {what}", ProcessState.NEW, PROCESS_TRANSITIONS
        )
        # Held while a start is under way, so that its event goes out before the exit's.
        self.starting = trio.Lock()
        self._publish = publish
        self._relay: Relay | None = None
        self._stdin_closed = False

    @property
    def state(self) -> ProcessState:
        """Where it stands."""
        return self.lifecycle.state

    @property
    def guest_id(self) -> str:
        """Its exec id in the agent's terms, where init goes by the container's id."""
        return self.exec_id or self.container_id

    @property
    def event_id(self) -> str:
        """Its id in events, where init goes by the container's id."""
        return self.exec_id or self.container_id

    async def supervise(
        self,
        agent: Agent,
        stdio: Stdio,
        before_exit: Callable[[], Awaitable[None]],
        lost_status: Callable[[], Awaitable[int]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry the streams until the process has ended, then say so.

        Output is in the client's FIFOs before :attr:`exited` is set. Owns ``stdio``
        and closes it.

        Args:
            agent: where the process runs.
            stdio: the host ends of its streams.
            before_exit: awaited between the end and its announcement.
            lost_status: gives the exit status when the agent or the VM is gone.
            task_status: started once the streams flow.
        """
        channel = agent.stdio(self.container_id, self.guest_id, terminal=self.paths.terminal)
        async with Relay(stdio, channel) as relay:
            self._relay = relay
            if self._stdin_closed:  # CloseIO came before the start
                await relay.close_stdin()
            task_status.started()
            try:
                status = await agent.wait(self.container_id, self.guest_id)
            except TtrpcError:
                # The agent or the whole VM is gone, and the process with it.
                relay.abandon()
                status = await lost_status()
            ended = time.time_ns()  # its last output may take a while to be read
            await relay.finish()
        await before_exit()
        async with self.starting:
            self.ended(Exit(status, ended), announce=self.state is not ProcessState.NEW)

    def ended(self, how: Exit, *, announce: bool) -> None:
        """Note the end; publish TaskExit if ``announce``."""
        if self.exit is not None:
            return
        self.lifecycle.move(ProcessState.STOPPED)
        self.exit = how
        if announce:
            self._publish(
                TaskExit(self.container_id, self.event_id, self.pid, how.status, how.at_ns)
            )
        self.exited.set()

    def start_failed(self) -> None:
        """Note that an exec could not be started: Wait returns, and no event is due."""
        self.pid = 0
        self.ended(Exit(FAILED_START_STATUS, time.time_ns()), announce=False)

    def lost(self) -> None:
        """Note that nothing is known of it any more but that it is gone."""
        self.ended(Exit(LOST_EXIT_STATUS, time.time_ns()), announce=True)

    def never_started(self) -> None:
        """Note that it was deleted before it was started, so that Wait returns."""
        self.ended(Exit(0, time.time_ns()), announce=False)

    async def wait(self) -> Exit:
        """Wait until it has ended, started or not."""
        await self.exited.wait()
        assert self.exit is not None
        return self.exit

    async def kill(self, agent: Agent, signal: int, *, everything: bool = False) -> None:
        """Send a signal.

        Args:
            agent: where it runs.
            signal: Linux signal number.
            everything: to every process of the container (init only).

        Raises:
            NotFound: when it has ended.
            FailedPrecondition: when it is an exec not yet started.
        """
        if self.state is ProcessState.STOPPED:
            raise NotFound(f"{self.event_id}: process already finished")
        if self.exec_id:
            self.lifecycle.require("signal", ProcessState.RUNNING, ProcessState.PAUSED)
        await agent.signal(self.container_id, "" if everything else self.guest_id, signal)

    async def close_stdin(self) -> None:
        """Let the process see end of file once what was sent has been delivered."""
        self._stdin_closed = True
        if self._relay is not None:
            await self._relay.close_stdin()

    async def resize(self, agent: Agent, width: int, height: int) -> None:
        """Set its terminal's size in characters; nothing without a terminal or after its end."""
        if self.paths.terminal and self.state in (
            ProcessState.CREATED,
            ProcessState.RUNNING,
            ProcessState.PAUSED,
        ):
            await agent.resize(self.container_id, self.guest_id, width, height)
