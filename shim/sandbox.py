"""A pod: its VM, its shared files and its containers; order and rollback are decided here.

The first Create starts the VM, and the shim's end stops it. Everything a container
has is pushed on a rollback stack before it is used, so that a failed Create and a
Delete undo the same things in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import trio

from protos.kata import agent_pb2
from shim.agent import Agent
from shim.config.model import Config
from shim.container import Container
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
from shim.net.netns import open_netns
from shim.oci.guest_spec import guest_spec
from shim.oci.mounts import host_mounts
from shim.oci.spec import load_spec
from shim.pod_vm import Helper, PodVm, PodVmPlan
from shim.process import Process
from shim.requests import CreateContainer, ExecProcess
from shim.rollback import Rollback
from shim.stages import Stages
from shim.state import SANDBOX_TRANSITIONS, Lifecycle, ProcessState, SandboxState
from shim.stdio.stdio import Stdio, open_stdio
from shim.storage.guest_share import share_storage
from shim.storage.options import Mount
from shim.storage.rootfs import BlockRootfs, plan_rootfs
from shim.storage.share import GUEST_SHARE, Share
from shim.vm_plan import VmPlan, plan_vm
from vmm.hypervisor import Hypervisor, Recorder
from vmm.spec import BlockDevice, VmSpec

MakeHypervisor = Callable[[VmSpec, Config, Recorder], Hypervisor]
MakeVirtiofsd = Callable[[VmPlan, Config, Recorder], AbstractAsyncContextManager[Helper]]

REMOVE_TIMEOUT_S = 10.0
DETACH_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


class Sandbox:
    """A pod.

    Args:
        namespace: containerd's namespace.
        sandbox_id: the pod's id.
        config: the effective configuration.
        ledger: takes every resource before it is made.
        runtime_dir: short directory for sockets and the share; made when needed.
        make_hypervisor: builds the VM's backend.
        make_virtiofsd: builds the file server's context.
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
        make_hypervisor: MakeHypervisor,
        make_virtiofsd: MakeVirtiofsd,
        publish: Publish,
        log: Log,
        stages: Stages,
        refusal: KatapyError | None = None,
    ) -> None:
        self.id = sandbox_id
        self._refusal = refusal
        self._namespace = namespace
        self._config = config
        self._ledger = ledger
        self._runtime_dir = runtime_dir
        self._make_hypervisor = make_hypervisor
        self._make_virtiofsd = make_virtiofsd
        self._publish = publish
        self._log = log
        self._stages = stages
        self._lifecycle = Lifecycle(f"pod {sandbox_id}", SandboxState.NEW, SANDBOX_TRANSITIONS)
        self._starting = trio.Lock()
        self._containers: dict[str, Container] = {}
        self._in_creation: set[str] = set()
        self._vm: PodVm | None = None
        self._share: Share | None = None
        self._cleanup = Rollback(log)
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
        vm = await self._started(spec)
        storages, rootfs = await self._add_rootfs(request, spec, vm, cleanup)
        sources = await self._add_volumes(request.container_id, spec, cleanup)
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
        self._stages.reached("created")
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

    async def _add_rootfs(
        self, request: CreateContainer, spec: dict[str, Any], vm: PodVm, cleanup: Rollback
    ) -> tuple[list[agent_pb2.Storage], str]:
        """Bring the root file system into the guest; its storages and its path there."""
        root = os.path.join(request.bundle, spec["root"]["path"])
        capabilities = vm.hypervisor.capabilities
        plan = plan_rootfs(
            [Mount(m.type, m.source, m.target, m.options) for m in request.rootfs],
            root,
            can_share=self._share is not None,
            can_attach=capabilities.block_hot == "add_remove"
            and not self._config.hypervisor.disable_block_device_use,
        )
        if not isinstance(plan, BlockRootfs):
            assert self._share is not None
            share = self._share
            cleanup.push(
                "the shared files", lambda: share.remove(request.container_id), timeout=30.0
            )
            return [], await share.add_rootfs(request.container_id, plan)
        device = BlockDevice(
            _device_id(request.container_id),
            Path(plan.path),
            read_only=plan.read_only,
            direct=plan.direct_io,
            shared=plan.read_only,
        )
        handle = await vm.hypervisor.attach(device)

        async def detach() -> None:
            if not vm.gone.is_set() and not vm.hypervisor.exited.is_set():
                await vm.hypervisor.detach(handle, DETACH_TIMEOUT_S)

        cleanup.push(f"disk {plan.path}", detach, timeout=DETACH_TIMEOUT_S + 2)
        path = (
            f"{GUEST_SHARE}/{request.container_id}/rootfs"
            if self._share is None
            else (f"/run/kata-containers/sandbox/storage/{_device_id(request.container_id)}")
        )
        storage = agent_pb2.Storage(
            driver="blk",
            source=str(handle.address),
            fstype=plan.fstype,
            options=plan.options,
            mount_point=path,
        )
        return [storage], path

    async def _add_volumes(
        self, container_id: str, spec: dict[str, Any], cleanup: Rollback
    ) -> dict[int, str]:
        """Share the spec's bind mounts; their guest paths by their place in the spec."""
        wanted = host_mounts(spec)
        if not wanted:
            return {}
        share = self._share
        if share is None:
            raise Unimplemented(
                f"container {container_id}: {wanted[0].destination} is a mount of the host, "
                "and shared_fs = 'none' shares none"
            )
        cleanup.push("the shared volumes", lambda: share.remove(container_id), timeout=30.0)
        return {
            mount.index: await share.add_volume(
                container_id, mount.source, read_only=mount.readonly, recursive=mount.recursive
            )
            for mount in wanted
        }

    async def _remove_in_guest(self, request: CreateContainer) -> None:
        vm = self._vm
        if vm is None or vm.gone.is_set() or vm.hypervisor.exited.is_set():
            return
        await vm.agent.remove_container(request.container_id, REMOVE_TIMEOUT_S)

    # -- the VM -----------------------------------------------------------------------

    async def _started(self, spec: dict[str, Any]) -> PodVm:
        """The pod's running VM; started by the first who asks.

        Raises:
            Unavailable: it has ended.
        """
        async with self._starting:
            state = self._lifecycle.state
            if state is SandboxState.RUNNING:
                assert self._vm is not None
                _ = self._vm.agent
                return self._vm
            if state is not SandboxState.NEW:
                raise Unavailable(f"pod {self.id} is {state.value}")
            self._lifecycle.move(SandboxState.STARTING)
            try:
                self._vm = await self._start(spec)
            except BaseException:
                await self._cleanup.unwind()
                self._vm = self._share = None
                self._lifecycle.move(SandboxState.NEW)
                raise
            self._lifecycle.move(SandboxState.RUNNING)
            self._log.info("the pod's VM is up", pid=self._vm.pid, stages=str(self._stages))
            return self._vm

    async def _start(self, spec: dict[str, Any]) -> PodVm:
        self._stages.reached("create")
        self._make_runtime_dir()
        netns = await trio.to_thread.run_sync(open_netns, spec)
        try:
            plan = plan_vm(
                self._config, name=f"katapy-{self.id}", runtime_dir=self._runtime_dir, netns=netns
            )
            storages = await self._make_share(plan)
            helpers: tuple[AbstractAsyncContextManager[Helper], ...] = ()
            if plan.shared_fs == "virtio-fs":
                helpers = (self._make_virtiofsd(plan, self._config, self._recorder("virtiofsd")),)
            vm = PodVm(
                self._make_hypervisor(plan.spec, self._config, self._recorder("vmm")),
                PodVmPlan(
                    sandbox_id=self.id,
                    spec=plan.spec,
                    helpers=helpers,
                    storages=tuple(storages),
                    hostname=spec.get("hostname", ""),
                    kernel_modules=self._config.agent.kernel_modules,
                    dial_timeout=float(self._config.agent.dial_timeout),
                ),
                self._oom,
                self._log,
                self._stages,
            )
            self._vm = vm
            await self._nursery.start(self._run_vm, vm)
        finally:
            if netns is not None:
                os.close(netns)
        self._cleanup.push("the VM", self._stop_vm, timeout=STOP_TIMEOUT_S)
        return vm

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

    async def _make_share(self, plan: VmPlan) -> list[agent_pb2.Storage]:
        if plan.shared_fs == "none":
            return []
        share = Share(str(plan.share_dir), self._ledger)
        self._cleanup.push("the share", share.aclose, timeout=30.0)
        await share.prepare()
        self._share = share
        return [share_storage(plan.shared_fs, plan.msize)]

    def _make_runtime_dir(self) -> None:
        entry = self._ledger.add("dir", path=str(self._runtime_dir), tree=True)
        os.makedirs(self._runtime_dir, mode=0o700, exist_ok=True)

        async def remove() -> None:
            os.rmdir(self._runtime_dir)
            self._ledger.remove(entry)

        self._cleanup.push(f"directory {self._runtime_dir}", remove)

    def _recorder(self, role: str) -> Recorder:
        """Enter what a backend makes into the ledger, and forget it when it is gone."""

        def record(kind: str, value: str | int) -> None:
            if kind == "process":
                from shim import process_table

                started = process_table.start_time(int(value)) or 0
                entry = self._ledger.add("process", pid=int(value), start_time=started, role=role)
            else:
                entry = self._ledger.add(kind, path=str(value))

            async def forget() -> None:
                self._ledger.remove(entry)

            self._cleanup.push(f"ledger entry {kind} {value}", forget)

        return record

    def _oom(self, container_id: str) -> None:
        if container_id in self._containers:
            self._publish(TaskOOM(container_id))

    def _console(self) -> str:
        return " | ".join(self._vm.hypervisor.console_tail()[-5:]) if self._vm else ""


def _device_id(container_id: str) -> str:
    """A device name for a container's root disk, short and of safe characters."""
    from shim.sockets import sha256_hex

    return f"rootfs-{sha256_hex(container_id.encode())[:12]}"


def _network_path(agent: Agent) -> str | None:
    # Kata's agent fills in the namespaces itself; ours takes the spec as it is.
    return "/proc/1/ns/net" if "oci-json" in agent.features else None
