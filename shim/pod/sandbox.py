"""A pod: its VM, its shared files and its containers; order and rollback are decided here.

The first Create starts the VM, and the shim's end stops it. Everything a container
has is pushed on a rollback stack before it is used, so that a failed Create and a
Delete undo the same things in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from shim.agent import Agent
from shim.cleanup import process_table
from shim.cleanup.ledger import LOGGER_ROLE, Ledger
from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    KatapyError,
    NotFound,
    Unavailable,
    Unimplemented,
)
from shim.events import Publish, TaskCreate, TaskOOM
from shim.log import Log
from shim.oci.declared_pod import DeclaredPod, add_pod_mounts
from shim.oci.namespaces import joined_namespaces
from shim.oci.pod import PodSettings, name_own_machine, pod_settings
from shim.oci.role import Role, container_role
from shim.oci.spec import load_spec
from shim.pod.annotations import annotated
from shim.pod.builder import Backends, PodBuilder
from shim.pod.container import Container
from shim.pod.creation import Place, create_in_guest, make_place
from shim.pod.direct_volumes import DirectVolumes
from shim.pod.life import PodLife
from shim.pod.pause import PauseContainer
from shim.pod.process import Process
from shim.pod.ready import Ready
from shim.pod.stand_in import open_stand_in
from shim.pod.state import SANDBOX_TRANSITIONS, Lifecycle, ProcessState, SandboxState
from shim.pod.vm import PodVm
from shim.pod.volumes import VolumeMeans
from shim.requests import CreateContainer, ExecProcess
from shim.stages import Stages
from shim.stdio.stdio import Stdio, open_stdio
from shim.stdio.streaming import Streams

STOP_TIMEOUT_S = 10.0
# A guest that tells of kills without end must not crowd out the events that count.
OOM_INTERVAL_S = 1.0


class Sandbox:
    """A pod.

    Args:
        namespace: containerd's namespace.
        sandbox_id: the pod's id.
        config: the effective configuration.
        ledger: takes every resource before it is made.
        runtime_dir: short directory for sockets and the share; made when needed.
        backends: what the VM is made with.
        publish: takes task events.
        log: the shim's log.
        stages: the pod's start.
        direct: the direct-assigned volumes that the pod uses.
        streams: the streams that clients open for stdio.
        refusal: why no container can be made here, such as a wrong configuration.
    """

    def __init__(
        self,
        *,
        namespace: str,
        sandbox_id: str,
        config: Config,
        ledger: Ledger,
        runtime_dir: Path,
        backends: Backends,
        publish: Publish,
        log: Log,
        stages: Stages,
        direct: DirectVolumes,
        streams: Streams,
        refusal: KatapyError | None = None,
    ) -> None:
        self.id = sandbox_id
        self._refusal = refusal
        self._namespace = namespace
        self._given_config = self._config = config
        self._ledger = ledger
        self._direct = direct
        self._streams = streams
        self._publish = publish
        self._log = log
        self._stages = stages
        self._lifecycle = Lifecycle(f"pod {sandbox_id}", SandboxState.NEW, SANDBOX_TRANSITIONS)
        self._starting = trio.Lock()
        self._containers: dict[str, Container] = {}
        self._in_creation: set[str] = set()
        self._oom_told: dict[str, float] = {}
        self._vm: PodVm | None = None
        self._place: Place | None = None
        self._settings = PodSettings()
        # What a client declared by the sandbox API, which then ends the pod too.
        self.declared: DeclaredPod | None = None
        self._pod_files: dict[str, str] = {}
        self.life = PodLife()
        self._cleanup = Rollback(log)
        self._builder = PodBuilder(
            sandbox_id=sandbox_id,
            config=config,
            ledger=ledger,
            runtime_dir=runtime_dir,
            backends=backends,
            cleanup=self._cleanup,
            on_oom=self._oom,
            log=log,
            stages=stages,
        )
        self._nursery: trio.Nursery

    @property
    def containers(self) -> Mapping[str, Container]:
        """The containers that exist, by id."""
        return self._containers

    @property
    def agent(self) -> Agent:
        """The guest's agent.

        Raises:
            Unavailable: when there is no VM.
        """
        if self._vm is None:
            raise Unavailable(f"pod {self.id} has no VM")
        return self._vm.agent

    def container(self, container_id: str) -> Container:
        """Find a container.

        Raises:
            NotFound: when there is none of this id.
        """
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound(f"container {container_id!r} not found") from None

    def task_pid(self, container_id: str) -> int:
        """The host process that stands for a container's init, 0 when there is none."""
        container = self._containers.get(container_id)
        return container.init.pid if container is not None else 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the pod's tasks until :meth:`stop` has been called."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(trio.sleep_forever)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await self._cleanup.unwind()

    async def stop(self) -> None:
        """End the VM and undo everything of the pod. Idempotent."""
        with trio.CancelScope(shield=True):
            async with self._starting:
                # At once: with a guest that hangs each takes its full time.
                async with trio.open_nursery() as nursery:
                    for container in self._containers.values():
                        nursery.start_soon(container.abandon)
                self._containers.clear()
                await self._cleanup.unwind()
                if self._lifecycle.state is not SandboxState.STOPPED:
                    self._lifecycle.move(SandboxState.STOPPED)
            self._nursery.cancel_scope.cancel()

    # -- containers -------------------------------------------------------------------

    async def create_container(self, request: CreateContainer) -> Container:
        """Make a container; the pod's first one starts the VM.

        Raises:
            AlreadyExists: the id is taken.
            InvalidArgument: the bundle or the rootfs is malformed, or an annotation refused.
            Unimplemented: it is to be restored from a checkpoint.
            DeadlineExceeded: it took longer than ``create_container_timeout``.
        """
        if request.container_id in self._containers or request.container_id in self._in_creation:
            raise AlreadyExists(f"container {request.container_id} exists already")
        if self._refusal is not None:
            raise self._refusal
        if request.checkpoint:
            raise Unimplemented("katapy does not restore containers from checkpoints yet")
        spec = load_spec(Path(request.bundle))
        if self._lifecycle.state is SandboxState.NEW and not self._in_creation:
            self._configure(spec)
        self._in_creation.add(request.container_id)
        cleanup = Rollback(self._log)
        try:
            with self._bounded(f"container {request.container_id} was not created"):
                container = await self._create(request, spec, cleanup)
        except BaseException:
            await cleanup.unwind()
            raise
        finally:
            self._in_creation.discard(request.container_id)
        self._containers[request.container_id] = container
        self._publish(
            TaskCreate(
                container.id, request.bundle, request.rootfs, request.stdio, container.init.pid
            )
        )
        return container

    def _configure(self, spec: dict[str, Any]) -> None:
        self._config = annotated(self._given_config, spec.get("annotations", {}), self._log.warning)
        self._builder.configure(self._config)

    async def _create(
        self, request: CreateContainer, spec: dict[str, Any], cleanup: Rollback
    ) -> Container:
        role = container_role(spec)
        if role is Role.SANDBOX:
            return await self._create_pause(request, spec, cleanup)
        # Opened before the VM boots: the client waits at the other end of the FIFOs.
        stdio = await self.open_stdio(request.container_id, request)
        cleanup.push("stdio", stdio.aclose, timeout=15.0)
        place = await self._started(spec, role)
        pid = await self._host_pid(place.vm, role, cleanup)
        if self._pod_files:
            add_pod_mounts(spec, self._pod_files)
        in_pod = role is Role.MEMBER or self.declared is not None
        if in_pod:
            name_own_machine(spec, self._settings)
        joined = joined_namespaces(
            spec,
            pod_pid=place.vm.pid,
            containers={c.init.pid: c.id for c in self._containers.values()},
            host_pid=self._settings.host_pid,
            in_pod=in_pod,
        )
        hooks, volumes = await create_in_guest(place, request, spec, joined, cleanup)
        container = Container(request, self, pid, cleanup, self._publish, hooks.after_start)

        async def before_exit() -> None:
            await container.end_execs()
            await volumes.bring_back(self._log)

        await self.supervise(container.init, stdio, before_exit)
        if container.init.exit is not None:
            raise Unavailable(f"container {container.id} ended while it was created")
        # Not before: the end of a container that nobody was told of is no event.
        container.init.lifecycle.move(ProcessState.CREATED)
        if self._stages.reached("created"):
            self._log.info("the pod's first container is made", stages=str(self._stages))
        return container

    async def _create_pause(
        self, request: CreateContainer, spec: dict[str, Any], cleanup: Rollback
    ) -> Container:
        vm = (await self._started(spec, Role.SANDBOX)).vm
        pause = PauseContainer(request, self, vm.pid, cleanup, self._publish)
        self._nursery.start_soon(pause.run, vm.gone, self._stop_vm)
        self._stages.reached("created")
        return pause

    async def _host_pid(self, vm: PodVm, role: Role, cleanup: Rollback) -> int:
        """The host pid of a container: the VMM's for one alone, else a pid of its own."""
        if role is Role.SINGLE and not self._containers and self.declared is None:
            return vm.pid
        stand_in = await open_stand_in(vm.pid)
        cleanup.push("its host pid", stand_in.close)
        return stand_in.pid

    async def delete_container(self, container_id: str) -> Process:
        """Undo a container that has ended or was never started.

        Raises:
            NotFound: there is none of this id (any more).
            FailedPrecondition: it runs.
        """
        container = self.container(container_id)
        if container.deleting:
            raise NotFound(f"container {container_id!r} is being deleted")
        # Carried to its end, in bounded time: nobody could ask again for the rest of it.
        with trio.CancelScope(shield=True):
            try:
                await container.delete()
            finally:
                if container.deleting:
                    self._containers.pop(container_id, None)
                    self._oom_told.pop(container_id, None)
        return container.init

    async def update_container(self, container_id: str, resources: dict[str, Any]) -> None:
        """Apply new limits (OCI ``linux.resources``), and give the VM the size they call for.

        Raises:
            NotFound: there is no container of this id.
            FailedPrecondition: it has ended.
            ResourceExhausted: the VM did not get the memory.
        """
        container = self.container(container_id)
        if self._place is None:
            raise Unavailable(f"pod {self.id} has no VM")
        await self._place.resources.update(container, resources)

    async def open_stdio(self, container_id: str, request: CreateContainer | ExecProcess) -> Stdio:
        """Open the host ends of a process's streams."""
        paths = request.stdio
        return await open_stdio(
            paths.stdin,
            paths.stdout,
            paths.stderr,
            paths.terminal,
            container_id=container_id,
            namespace=self._namespace,
            record=partial(self._record_logger, container_id),
            streams=self._streams,
        )

    def _record_logger(self, container_id: str, pid: int) -> Callable[[], None]:
        started = process_table.start_time(pid) or 0
        entry = self._ledger.add(
            "process", pid=pid, start_time=started, role=LOGGER_ROLE, container=container_id
        )
        return partial(self._ledger.remove, entry)

    async def settle_network(self) -> None:
        """Have the guest's links be what the pod's are now."""
        if self._vm is not None and self._vm.network is not None:
            await self._vm.network.settle()

    async def supervise(
        self, process: Process, stdio: Stdio, before_exit: Callable[[], Awaitable[None]]
    ) -> None:
        """Have a process's streams and exit looked after for as long as it lives."""
        agent, place = self.agent, self._place
        assert place is not None
        lost_status = partial(place.resources.lost_status, process)

        async def guarded(*, task_status: trio.TaskStatus[None]) -> None:
            ready = Ready(task_status)
            try:
                await process.supervise(agent, stdio, before_exit, lost_status, task_status=ready)
            except Exception as err:
                if not ready.said:
                    raise
                self._log.error(f"{process.event_id} is no longer looked after: {err!r}")
                process.lost()

        await self._nursery.start(guarded)

    # -- the VM -----------------------------------------------------------------------

    async def _started(self, spec: dict[str, Any], role: Role) -> Place:
        """The place for containers in the pod's VM, which the first who asks starts.

        Raises:
            Unavailable: it has ended.
            FailedPrecondition: a member of a pod asks before its pod was made.
        """
        async with self._starting:
            state = self._lifecycle.state
            if state is SandboxState.RUNNING:
                assert self._place is not None
                _ = self._place.vm.agent
                return self._place
            if state is not SandboxState.NEW:
                raise Unavailable(f"pod {self.id} is {state.value}")
            if role is Role.MEMBER:
                raise FailedPrecondition(f"pod {self.id} has not been started")
            self._lifecycle.move(SandboxState.STARTING)
            try:
                settings = await trio.to_thread.run_sync(pod_settings, spec)
                if self.declared is not None:
                    settings = replace(settings, dns=self.declared.dns)
                vm, share = await self._builder.build(spec, settings, self._run_in_nursery)
            except BaseException:
                await self._cleanup.unwind()
                self._vm = None
                self._lifecycle.move(SandboxState.NEW)
                raise
            self._cleanup.push("the VM", self._stop_vm, timeout=STOP_TIMEOUT_S)
            means = VolumeMeans(self._ledger, self._nursery.start, self._direct)
            self._place = make_place(
                vm,
                share,
                self._config,
                settings.sysctls,
                self._builder.cgroup,
                self._publish,
                means,
                self._log,
            )
            self._nursery.start_soon(self._place.resources.run)
            self._settings = settings
            self._lifecycle.move(SandboxState.RUNNING)
            self.life.started(vm.pid)
            self._log.info("the pod's VM is up", pid=vm.pid, stages=str(self._stages))
            return self._place

    async def _run_in_nursery(self, vm: PodVm) -> None:
        self._vm = vm
        await self._nursery.start(self._run_vm, vm)

    async def _run_vm(self, vm: PodVm, *, task_status: trio.TaskStatus[None]) -> None:
        ready = Ready(task_status)
        try:
            await vm.run(task_status=ready)
        except Exception as err:
            if not ready.said:
                raise
            self._log.error(f"the VM of pod {self.id} did not end well: {err!r}")
        finally:
            if ready.said:
                self.life.ended()

    async def _stop_vm(self) -> None:
        if self._vm is not None:
            self.life.ending = True
            # With no container left there is nothing to sync or to end first.
            running = (c.init.state is ProcessState.RUNNING for c in self._containers.values())
            await self._vm.stop(orderly=any(running))

    def _oom(self, container_id: str) -> None:
        now = trio.current_time()
        recent = now - self._oom_told.get(container_id, -math.inf) < OOM_INTERVAL_S
        if container_id in self._containers and not recent:
            self._oom_told[container_id] = now
            self._publish(TaskOOM(container_id))

    @contextmanager
    def _bounded(self, what: str) -> Iterator[None]:
        """Give a start the time it may take."""
        limit = self._config.runtime.create_container_timeout + self._config.agent.dial_timeout
        try:
            with trio.fail_after(limit):
                yield
        except trio.TooSlowError:
            console = " | ".join(self._vm.hypervisor.console_tail()[-5:]) if self._vm else ""
            raise DeadlineExceeded(
                f"{what} within {limit} s; last console lines: {console}"
            ) from None
