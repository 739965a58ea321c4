"""A pod that a client may declare, start and stop as such, by the sandbox API.

Such a pod has no pause container: its VM's life is asked for directly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from shim.errors import AlreadyExists, FailedPrecondition
from shim.oci.declared_pod import DeclaredPod
from shim.oci.role import Role
from shim.pod.container import kill_all
from shim.pod.files import make_pod_files
from shim.pod.sandbox import Sandbox
from shim.pod.state import SandboxState
from vmm.arch import Architecture, architecture

KILL_TIMEOUT_S = 5.0


class DeclarableSandbox(Sandbox):
    """A pod, by either way.

    Args:
        runtime_dir: short directory for sockets and the share; made when needed.
        kwargs: as for :class:`Sandbox`.
    """

    def __init__(self, *, runtime_dir: Path, **kwargs: Any) -> None:
        super().__init__(runtime_dir=runtime_dir, **kwargs)
        self._etc = runtime_dir / "etc"

    @property
    def guest_architecture(self) -> Architecture:
        """What the pod's images must be for."""
        return architecture(self._config.katapy.guest_arch)

    def declare(self, pod: DeclaredPod) -> None:
        """Say what pod this is to be, before anything of it runs.

        Raises:
            AlreadyExists: it was said before, or a container is there.
            InvalidArgument: an annotation is refused.
        """
        if self.declared is not None or self._lifecycle.state is not SandboxState.NEW:
            raise AlreadyExists(f"pod {self.id} exists already")
        if self._refusal is not None:
            raise self._refusal
        self._configure(pod.spec)
        self.declared = pod

    async def start(self) -> None:
        """Start the VM of a declared pod.

        Raises:
            FailedPrecondition: it was not declared, or has been started.
            DeadlineExceeded: it took too long.
        """
        pod = self.declared
        if pod is None:
            raise FailedPrecondition(f"pod {self.id} has not been created")
        self._lifecycle.require("start", SandboxState.NEW)
        with self._bounded(f"pod {self.id} did not start"):
            await self._started(pod.spec, Role.SANDBOX)
            self._pod_files = await make_pod_files(pod, str(self._etc), self._cleanup)

    async def stop_pod(self) -> None:
        """Kill the containers and end the VM; the containers stay to be looked at. Idempotent."""
        with trio.CancelScope(shield=True):
            async with self._starting:
                with trio.move_on_after(KILL_TIMEOUT_S):
                    await kill_all(self._containers.values())
                await self._stop_vm()
                if self._lifecycle.state is not SandboxState.STOPPED:
                    self._lifecycle.move(SandboxState.STOPPED)
                self.life.ending = True
                self.life.ended()
