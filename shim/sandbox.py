"""A pod: its VM, its shared files and its containers; order and rollback are decided here.

The first Create starts the VM, and the shim's end stops it. Everything a container
has is pushed on a rollback stack before it is used, so that a failed Create and a
Delete undo the same things in the same way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from shim.agent import Agent
from shim.config.model import Config
from shim.container import Container
from shim.container_files import ContainerFiles
from shim.errors import (
    AlreadyExists,
    DeadlineExceeded,
    KatapyError,
    NotFound,
    Unavailable,
    Unimplemented,
)
from shim.events import Publish, TaskCreate, TaskOOM
from shim.ledger import Ledger
from shim.log import Log
from shim.oci.guest_spec import guest_spec
from shim.oci.spec import load_spec
from shim.pod_builder import Backends, PodBuilder
from shim.pod_vm import PodVm
from shim.process import Process
from shim.requests import CreateContainer, ExecProcess
from shim.rollback import Rollback
from shim.stages import Stages
from shim.state import SANDBOX_TRANSITIONS, Lifecycle, ProcessState, SandboxState
from shim.stdio.stdio import Stdio, open_stdio

REMOVE_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


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
        refusal: KatapyError | None = None,
    ) -> None:
        self.id = sandbox_id
        self._refusal = refusal
        self._namespace = namespace
        self._config = config
        self._publish = publish
        self._log = log
        self._stages = stages
        self._lifecycle = Lifecycle(f"pod {sandbox_id}", SandboxState.NEW, SANDBOX_TRANSITIONS)
        self._starting = trio.Lock()
        self._containers: dict[str, Container] = {}
        self._in_creation: set[str] = set()
        self._vm: PodVm | None = None
        self._files: ContainerFiles | None = None
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
                for container in list(self._containers.values()):
                    await container.abandon()
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
            InvalidArgument: the bundle or the rootfs is malformed.
            Unimplemented: it is to be restored from a checkpoint.
            DeadlineExceeded: it took longer than ``create_container_timeout``.
        """
        if request.container_id in self._containers or request.container_id in self._in_creation:
            raise AlreadyExists(f"container {request.container_id} exists already")
        if self._refusal is not None:
            raise self._refusal
        if request.checkpoint:
            raise Unimplemented("katapy does not restore containers from checkpoints yet")
        self._in_creation.add(request.container_id)
        cleanup = Rollback(self._log)
        limit = self._config.runtime.create_container_timeout + self._config.agent.dial_timeout
        try:
            with trio.fail_after(limit):
                container = await self._create(request, cleanup)
        except trio.TooSlowError:
            await cleanup.unwind()
            raise DeadlineExceeded(
                f"container {request.container_id} was not created within {limit} s; "
                f"last console lines: {self._console()}"
            ) from None
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

    async def _create(self, request: CreateContainer, cleanup: Rollback) -> Container:
        spec = load_spec(Path(request.bundle))
        # Opened before the VM boots: the client waits at the other end of the FIFOs.
        stdio = await self.open_stdio(request.container_id, request)
        cleanup.push("stdio", stdio.aclose, timeout=15.0)
        vm, files = await self._started(spec)
        storages, rootfs = await files.add_rootfs(request, spec, cleanup)
        sources = await files.add_volumes(request.container_id, spec, cleanup)
        guest = guest_spec(
            spec,
            container_id=request.container_id,
            rootfs_path=rootfs,
            mount_sources=sources,
            terminal=request.stdio.terminal,
            seccomp=not self._config.runtime.disable_guest_seccomp,
            network_path=_network_path(vm.agent),
        )
        cleanup.push("the container in the guest", lambda: self._remove_in_guest(request))
        await vm.agent.create_container(
            request.container_id,
            guest,
            storages=storages,
            timeout=self._config.runtime.create_container_timeout,
        )
        container = Container(request, self, vm.pid, cleanup, self._publish)
        container.init.lifecycle.move(ProcessState.CREATED)
        await self.supervise(container.init, stdio, container.end_execs)
        if self._stages.reached("created"):
            self._log.info("the pod's first container is made", stages=str(self._stages))
        return container

    async def delete_container(self, container_id: str) -> Process:
        """Undo a container that has ended or was never started.

        Raises:
            NotFound: there is none of this id (any more).
            FailedPrecondition: it runs.
        """
        container = self.container(container_id)
        if container.deleting:
            raise NotFound(f"container {container_id!r} is being deleted")
        await container.delete()
        self._containers.pop(container_id, None)
        return container.init

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
        )

    async def supervise(
        self, process: Process, stdio: Stdio, before_exit: Callable[[], Awaitable[None]]
    ) -> None:
        """Have a process's streams and exit looked after for as long as it lives."""
        agent = self.agent

        async def guarded(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                await process.supervise(agent, stdio, before_exit, task_status=task_status)
            except Exception as err:
                if process.state is ProcessState.CREATED or process.state is ProcessState.NEW:
                    raise
                self._log.error(f"{process.event_id} is no longer looked after: {err!r}")
                process.lost()

        await self._nursery.start(guarded)

    async def _remove_in_guest(self, request: CreateContainer) -> None:
        vm = self._vm
        if vm is None or vm.gone.is_set() or vm.hypervisor.exited.is_set():
            return
        await vm.agent.remove_container(request.container_id, REMOVE_TIMEOUT_S)

    # -- the VM -----------------------------------------------------------------------

    async def _started(self, spec: dict[str, Any]) -> tuple[PodVm, ContainerFiles]:
        """The pod's running VM, started by the first who asks, and the way of files into it.

        Raises:
            Unavailable: it has ended.
        """
        async with self._starting:
            state = self._lifecycle.state
            if state is SandboxState.RUNNING:
                assert self._vm is not None
                assert self._files is not None
                _ = self._vm.agent
                return self._vm, self._files
            if state is not SandboxState.NEW:
                raise Unavailable(f"pod {self.id} is {state.value}")
            self._lifecycle.move(SandboxState.STARTING)
            try:
                vm, share = await self._builder.build(spec, self._run_in_nursery)
            except BaseException:
                await self._cleanup.unwind()
                self._vm = None
                self._lifecycle.move(SandboxState.NEW)
                raise
            self._cleanup.push("the VM", self._stop_vm, timeout=STOP_TIMEOUT_S)
            self._files = ContainerFiles(self._config, vm, share)
            self._lifecycle.move(SandboxState.RUNNING)
            self._log.info("the pod's VM is up", pid=vm.pid, stages=str(self._stages))
            return vm, self._files

    async def _run_in_nursery(self, vm: PodVm) -> None:
        self._vm = vm
        await self._nursery.start(self._run_vm, vm)

    async def _run_vm(self, vm: PodVm, *, task_status: trio.TaskStatus[None]) -> None:
        ready = False

        class Ready(trio.TaskStatus[None]):
            def started(self, value: None = None) -> None:
                nonlocal ready
                ready = True
                task_status.started()

        try:
            await vm.run(task_status=Ready())
        except Exception as err:
            if not ready:
                raise
            self._log.error(f"the VM of pod {self.id} did not end well: {err!r}")

    async def _stop_vm(self) -> None:
        if self._vm is not None:
            # With no container left there is nothing to sync or to end first.
            await self._vm.stop(orderly=bool(self._containers))

    def _oom(self, container_id: str) -> None:
        if container_id in self._containers:
            self._publish(TaskOOM(container_id))

    def _console(self) -> str:
        return " | ".join(self._vm.hypervisor.console_tail()[-5:]) if self._vm else ""


def _network_path(agent: Agent) -> str | None:
    # Kata's agent fills in the namespaces itself; ours takes the spec as it is.
    return "/proc/1/ns/net" if "oci-json" in agent.features else None
