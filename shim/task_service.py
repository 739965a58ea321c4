"""The Task service, v2 and v3: translate, call the sandbox, translate back.

``def`` handlers answer from host memory within the connection's reader; ``async
def`` ones run as tasks. State, Pids and Connect must never wait on the guest.

Source: containerd ``api/runtime/task/v2/shim.proto`` and ``v3``, which differ in
their package alone.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from google.protobuf.empty_pb2 import Empty

from protos.containerd import runc_options_pb2, task_types_pb2, task_v2_pb2
from shim import translate
from shim.errors import InvalidArgument, Unimplemented
from shim.pod.sandbox import Sandbox
from shim.ttrpc.service import CallContext
from shim.version import VERSION


class TaskService:
    """Task RPCs on one sandbox.

    Args:
        sandbox: the pod this shim serves.
        shutdown: called when a client has asked the shim to end and nothing is left in it.
    """

    def __init__(self, sandbox: Sandbox, shutdown: Callable[[], Awaitable[None]]) -> None:
        self._sandbox = sandbox
        self._shutdown = shutdown
        self._ending = False

    async def create(
        self, request: task_v2_pb2.CreateTaskRequest, _context: CallContext
    ) -> task_v2_pb2.CreateTaskResponse:
        """Make a container, its init waiting to be started."""
        container = await self._sandbox.create_container(translate.create_request(request))
        return task_v2_pb2.CreateTaskResponse(pid=container.init.pid)

    async def start(
        self, request: task_v2_pb2.StartRequest, _context: CallContext
    ) -> task_v2_pb2.StartResponse:
        """Run init or an exec."""
        process = await self._sandbox.container(request.id).start(request.exec_id)
        return task_v2_pb2.StartResponse(pid=process.pid)

    def state(
        self, request: task_v2_pb2.StateRequest, _context: CallContext
    ) -> task_v2_pb2.StateResponse:
        """Say where a process stands."""
        container = self._sandbox.container(request.id)
        process, state = container.process(request.exec_id), container.state(request.exec_id)
        return translate.state_response(process, state, container.bundle)

    async def delete(
        self, request: task_v2_pb2.DeleteRequest, _context: CallContext
    ) -> task_v2_pb2.DeleteResponse:
        """Forget a stopped container or exec."""
        if request.exec_id:
            process = self._sandbox.container(request.id).delete_exec(request.exec_id)
        else:
            process = await self._sandbox.delete_container(request.id)
            if self._ending and not self._sandbox.containers:
                # The pod was shut down before this member; nobody may ask again.
                await self._shutdown()
        return translate.delete_response(process.pid, await process.wait())

    def pids(
        self, request: task_v2_pb2.PidsRequest, _context: CallContext
    ) -> task_v2_pb2.PidsResponse:
        """List the host process that stands for each process of the container."""
        container = self._sandbox.container(request.id)
        processes = [task_types_pb2.ProcessInfo(pid=container.init.pid)]
        processes += [
            task_types_pb2.ProcessInfo(
                pid=process.pid,
                info=translate.pack(runc_options_pb2.ProcessDetails(exec_id=process.exec_id)),
            )
            for process in container.running_execs()
        ]
        return task_v2_pb2.PidsResponse(processes=processes)

    async def pause(self, request: task_v2_pb2.PauseRequest, _context: CallContext) -> Empty:
        """Freeze a container."""
        await self._sandbox.container(request.id).pause()
        return Empty()

    async def resume(self, request: task_v2_pb2.ResumeRequest, _context: CallContext) -> Empty:
        """Thaw a container."""
        await self._sandbox.container(request.id).resume()
        return Empty()

    def checkpoint(
        self, request: task_v2_pb2.CheckpointTaskRequest, _context: CallContext
    ) -> Empty:
        """Refuse: not there yet."""
        self._sandbox.container(request.id)
        raise Unimplemented("katapy does not checkpoint containers yet")

    async def kill(self, request: task_v2_pb2.KillRequest, _context: CallContext) -> Empty:
        """Send a signal."""
        await self._sandbox.container(request.id).kill(
            request.exec_id, request.signal, everything=request.all
        )
        return Empty()

    def exec(self, request: task_v2_pb2.ExecProcessRequest, _context: CallContext) -> Empty:
        """Register one more process; Start runs it."""
        self._sandbox.container(request.id).add_exec(translate.exec_request(request))
        return Empty()

    async def resize_pty(
        self, request: task_v2_pb2.ResizePtyRequest, _context: CallContext
    ) -> Empty:
        """Set a terminal's size."""
        await self._sandbox.container(request.id).resize(
            request.exec_id, request.width, request.height
        )
        return Empty()

    async def close_io(self, request: task_v2_pb2.CloseIORequest, _context: CallContext) -> Empty:
        """Close a process's stdin."""
        process = self._sandbox.container(request.id).process(request.exec_id)
        if request.stdin:
            await process.close_stdin()
        return Empty()

    async def update(self, request: task_v2_pb2.UpdateTaskRequest, _context: CallContext) -> Empty:
        """Apply new limits."""
        await self._sandbox.update_container(request.id, translate.resources(request.resources))
        return Empty()

    async def wait(
        self, request: task_v2_pb2.WaitRequest, _context: CallContext
    ) -> task_v2_pb2.WaitResponse:
        """Wait for a process's end, started or not."""
        process = self._sandbox.container(request.id).process(request.exec_id)
        return translate.wait_response(await process.wait())

    async def stats(
        self, request: task_v2_pb2.StatsRequest, _context: CallContext
    ) -> task_v2_pb2.StatsResponse:
        """Give a container's counters, in the form the host's cgroup mode makes clients expect."""
        stats = await self._sandbox.container(request.id).stats()
        return task_v2_pb2.StatsResponse(stats=translate.pack(translate.metrics(stats)))

    def connect(
        self, request: task_v2_pb2.ConnectRequest, _context: CallContext
    ) -> task_v2_pb2.ConnectResponse:
        """Say which processes serve and stand for a container; never NotFound."""
        return task_v2_pb2.ConnectResponse(
            shim_pid=os.getpid(), task_pid=self._sandbox.task_pid(request.id), version=VERSION
        )

    async def shutdown(self, request: task_v2_pb2.ShutdownRequest, _context: CallContext) -> Empty:
        """End the shim, once no container is left in it."""
        if not request.id and not request.now:
            raise InvalidArgument("shutdown: the container id is empty")
        if self._sandbox.declared is not None:
            return Empty()  # ShutdownSandbox ends it
        # containerd asks this after each container that it deleted. Only what names the pod
        # means the pod, and may be followed by no other request (see delete).
        self._ending = self._ending or request.now or request.id == self._sandbox.id
        if not self._sandbox.containers:
            await self._shutdown()
        return Empty()
