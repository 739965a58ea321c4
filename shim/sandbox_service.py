"""The sandbox service: a pod without a pause container (containerd's ``sandboxer = "shim"``).

``def`` handlers answer from host memory; containerd asks for the status around every
other call.

Source: containerd ``api/runtime/sandbox/v1/sandbox.proto``, core/sandbox.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable

from protos.containerd import sandbox_pb2 as pb
from protos.containerd import types_pb2
from shim import translate
from shim.errors import InvalidArgument, NotFound
from shim.pod.declarable_sandbox import DeclarableSandbox
from shim.pod.stats import pod_stats
from shim.ttrpc.service import CallContext

READY = "SANDBOX_READY"
NOT_READY = "SANDBOX_NOTREADY"


class SandboxService:
    """Sandbox RPCs on the pod this shim serves.

    Args:
        sandbox: the pod.
        shutdown: ends the shim.
    """

    def __init__(self, sandbox: DeclarableSandbox, shutdown: Callable[[], Awaitable[None]]) -> None:
        self._sandbox = sandbox
        self._shutdown = shutdown
        self._netns_path = ""

    def create(
        self, request: pb.CreateSandboxRequest, _context: CallContext
    ) -> pb.CreateSandboxResponse:
        """Declare the pod; nothing runs yet."""
        from shim.translate_pod import declared_pod  # most pods never need it

        if request.sandbox_id != self._sandbox.id:
            raise InvalidArgument(
                f"sandbox {request.sandbox_id!r}: this shim serves {self._sandbox.id!r}"
            )
        self._sandbox.declare(declared_pod(request))
        self._netns_path = request.netns_path
        return pb.CreateSandboxResponse()

    async def start(
        self, request: pb.StartSandboxRequest, _context: CallContext
    ) -> pb.StartSandboxResponse:
        """Start its VM."""
        self._check(request.sandbox_id)
        await self._sandbox.start()
        life = self._sandbox.life
        return pb.StartSandboxResponse(
            pid=life.pid, created_at=translate.timestamp(life.created_ns)
        )

    def platform(self, request: pb.PlatformRequest, _context: CallContext) -> pb.PlatformResponse:
        """Say what its containers run on."""
        self._check(request.sandbox_id)
        return pb.PlatformResponse(
            platform=types_pb2.Platform(
                os="linux", architecture=self._sandbox.guest_architecture.oci
            )
        )

    async def stop(
        self, request: pb.StopSandboxRequest, _context: CallContext
    ) -> pb.StopSandboxResponse:
        """Kill its containers and end its VM. Idempotent."""
        self._check(request.sandbox_id)
        await self._sandbox.stop_pod()
        return pb.StopSandboxResponse()

    async def wait(
        self, request: pb.WaitSandboxRequest, _context: CallContext
    ) -> pb.WaitSandboxResponse:
        """Wait for the VM's end."""
        self._check(request.sandbox_id)
        end = await self._sandbox.life.wait()
        return pb.WaitSandboxResponse(
            exit_status=end.status, exited_at=translate.timestamp(end.at_ns)
        )

    def status(
        self, request: pb.SandboxStatusRequest, _context: CallContext
    ) -> pb.SandboxStatusResponse:
        """Say where it stands."""
        self._check(request.sandbox_id)
        life = self._sandbox.life
        response = pb.SandboxStatusResponse(
            sandbox_id=self._sandbox.id,
            pid=life.pid,
            state=READY if life.ready else NOT_READY,
        )
        if life.created_ns:
            response.created_at.CopyFrom(translate.timestamp(life.created_ns))
        if life.end is not None:
            response.exited_at.CopyFrom(translate.timestamp(life.end.at_ns))
        if request.verbose:
            # One JSON text under "info", as the pods of other sandboxers have it.
            about = {"pid": life.pid, "networkNamespace": self._netns_path}
            response.info["info"] = json.dumps(about)
            response.info["networkSandboxPath"] = self._netns_path
            response.info["pid"] = str(life.pid)
            response.info["state"] = response.state
        return response

    async def ping(self, request: pb.PingRequest, _context: CallContext) -> pb.PingResponse:
        """Ask the guest's agent for a sign of life."""
        self._check(request.sandbox_id)
        await self._sandbox.agent.check()
        return pb.PingResponse()

    async def shutdown(
        self, request: pb.ShutdownSandboxRequest, _context: CallContext
    ) -> pb.ShutdownSandboxResponse:
        """End the VM and the shim."""
        self._check(request.sandbox_id)
        await self._shutdown()
        return pb.ShutdownSandboxResponse()

    async def metrics(
        self, request: pb.SandboxMetricsRequest, _context: CallContext
    ) -> pb.SandboxMetricsResponse:
        """Give the sum of its containers' counters."""
        self._check(request.sandbox_id)
        stats = await pod_stats(self._sandbox.containers.values())
        return pb.SandboxMetricsResponse(
            metrics=types_pb2.Metric(
                timestamp=translate.timestamp(time.time_ns()),
                id=self._sandbox.id,
                data=translate.pack(translate.metrics(stats)),
            )
        )

    def _check(self, sandbox_id: str) -> None:
        if sandbox_id != self._sandbox.id:
            raise NotFound(f"sandbox {sandbox_id!r} not found: this shim serves another")
