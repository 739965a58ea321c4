"""The VM of a pod: spawn, boot, agent, and what is watched until its end.

One task owns all of it (``run``), so that virtiofsd, the VMM and the agent's
connection nest in each other and end in the right order whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import trio

from protos.kata import agent_pb2
from shim.agent import Agent, connect
from shim.errors import Unavailable
from shim.log import Log
from shim.net.pod_network import PodNetwork
from shim.pod.console_log import console_logged
from shim.pod.unplug import unplug
from shim.stages import Stages
from vmm.hypervisor import Hypervisor
from vmm.spec import AttachedDevice, VmSpec

HEALTH_INTERVAL_S = 30.0  # runtime-rs's; each check wakes the guest
HEALTH_TIMEOUT_S = 30.0
DESTROY_TIMEOUT_S = 3.0


class Helper(Protocol):
    """A daemon the VM depends on, such as virtiofsd."""

    @property
    def name(self) -> str:
        """What to call it in the log."""
        ...

    @property
    def exited(self) -> trio.Event:
        """Set when it is gone."""
        ...


@dataclass(frozen=True, slots=True)
class PodVmPlan:
    """What a pod's VM is made of.

    Args:
        sandbox_id: the pod's id, told to the agent.
        spec: the VM.
        helpers: daemons to start before it, in order.
        storages: mounts the agent makes for the whole pod.
        hostname: the pod's host name; empty leaves the guest's.
        dns: lines of the guest's resolv.conf.
        sysctls: kernel settings of the pod by dotted name.
        kernel_modules: lines of ``name key=value…`` the guest loads.
        guest_hook_path: directory of the guest's image with hooks for each container, or "".
        dial_timeout: seconds from boot to the agent's first answer.
        log_console: copy the guest's console and the VMM's messages into the log.
        network: the pod's network; None when it has none.
    """

    sandbox_id: str
    spec: VmSpec
    helpers: tuple[AbstractAsyncContextManager[Helper], ...]
    storages: tuple[agent_pb2.Storage, ...]
    hostname: str
    dns: tuple[str, ...]
    sysctls: Mapping[str, str]
    kernel_modules: tuple[str, ...]
    guest_hook_path: str
    dial_timeout: float
    log_console: bool = False
    network: PodNetwork | None = None


class PodVm:
    """A pod's VM and its agent.

    Args:
        hypervisor: the VM, not yet entered.
        plan: what it is made of.
        on_oom: called with a container's id when the guest's OOM killer struck in it.
        log: the shim's log.
        stages: the pod's start, stamped on the way.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        plan: PodVmPlan,
        on_oom: Callable[[str], None],
        log: Log,
        stages: Stages,
    ) -> None:
        self.gone = trio.Event()
        self._hypervisor = hypervisor
        self._plan = plan
        self._on_oom = on_oom
        self._log = log
        self._stages = stages
        self._agent: Agent | None = None
        self._stop = trio.Event()
        self._orderly = False

    @property
    def hypervisor(self) -> Hypervisor:
        """The VM itself, for devices."""
        return self._hypervisor

    @property
    def pid(self) -> int:
        """The VMM's process id."""
        return self._hypervisor.pid

    @property
    def agent(self) -> Agent:
        """The agent.

        Raises:
            Unavailable: when the VM is gone.
        """
        if self._agent is None:
            reason = self._hypervisor.exit_reason
            raise Unavailable(f"the VM of pod {self._plan.sandbox_id} is gone: {reason}")
        return self._agent

    @property
    def network(self) -> PodNetwork | None:
        """The pod's network; None when the pod has none of its own."""
        return self._plan.network

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the VM until it ends or :meth:`stop` is called; ready when the agent answers.

        Raises (before it is ready; afterwards everything is logged):
            VmmError: the VM did not come up.
            TtrpcError: the agent refused.
        """
        try:
            async with AsyncExitStack() as stack:
                if self._plan.log_console:
                    await stack.enter_async_context(console_logged(self._hypervisor, self._log))
                helpers = [await stack.enter_async_context(h) for h in self._plan.helpers]
                self._stages.reached("helpers")
                await stack.enter_async_context(self._hypervisor)
                self._stages.reached("vmm")
                network = self._plan.network
                await self._hypervisor.boot()
                if network is not None:
                    network.release_descriptors()  # the VMM has its own by now
                stream = await self._hypervisor.dial_agent(self._plan.dial_timeout)
                agent = await stack.enter_async_context(connect(stream, self._plan.dial_timeout))
                self._stages.reached("agent")
                await agent.create_sandbox(
                    self._plan.sandbox_id,
                    hostname=self._plan.hostname,
                    dns=self._plan.dns,
                    sysctls=self._plan.sysctls if "sysctl" in agent.features else {},
                    storages=self._plan.storages,
                    kernel_modules=self._plan.kernel_modules,
                    guest_hook_path=self._plan.guest_hook_path,
                )
                self._stages.reached("sandbox")
                if network is not None:
                    await network.configure(self._hypervisor, agent)
                    self._stages.reached("network")
                self._agent = agent
                task_status.started()
                try:
                    await self._watch(agent, helpers)
                finally:
                    self._agent = None
        finally:
            self._agent = None
            self.gone.set()

    async def _watch(self, agent: Agent, helpers: list[Helper]) -> None:
        """Return when the VM has ended, was asked to, or lost something it needs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forward_ooms, agent)
            nursery.start_soon(self._check_health, agent)
            if self._plan.network is not None:
                nursery.start_soon(self._plan.network.watch)
            for helper in helpers:
                nursery.start_soon(self._watch_helper, helper)
            nursery.start_soon(self._watch_exit)
            await self._stop.wait()
            if self._orderly and not self._hypervisor.exited.is_set():
                await self._destroy(agent)
            nursery.cancel_scope.cancel()

    async def _watch_exit(self) -> None:
        await self._hypervisor.exited.wait()
        if not self._stop.is_set():
            reason = self._hypervisor.exit_reason
            self._log.error(f"the VM of pod {self._plan.sandbox_id} ended: {reason}")
        self._stop.set()

    async def _watch_helper(self, helper: Helper) -> None:
        await helper.exited.wait()
        self._log.error(f"{helper.name} is gone: ending the VM, whose file systems hang now")
        self._stop.set()

    async def _check_health(self, agent: Agent) -> None:
        while True:
            await trio.sleep(HEALTH_INTERVAL_S)
            try:
                await agent.check(HEALTH_TIMEOUT_S)
            except Exception as err:
                self._log.error(f"the guest agent does not answer: {err!r}: ending the VM")
                self._stop.set()
                return

    async def _forward_ooms(self, agent: Agent) -> None:
        try:
            async for container_id in agent.oom_events():
                self._on_oom(container_id)
        except Exception as err:
            self._log.warning(f"no more OOM events from the guest: {err!r}")

    async def _destroy(self, agent: Agent) -> None:
        try:
            await agent.destroy_sandbox(DESTROY_TIMEOUT_S)
        except Exception as err:
            self._log.debug(f"the agent did not say goodbye: {err!r}")

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """Take a hot-plugged device away; nothing happens once the VM is gone.

        Args:
            handle: the device, which no container uses any more.
            timeout: seconds the guest has to let go of it.
        """
        if self._agent is None or self._hypervisor.exited.is_set():
            return  # gone, or about to be
        await unplug(self._hypervisor, self._agent, handle, timeout)

    async def stop(self, *, orderly: bool) -> None:
        """End the VM and wait until everything of it is gone.

        Args:
            orderly: let the agent end what still runs and sync first; without, the VM
                is killed at once, which loses nothing when no container is left in it.
        """
        self._orderly = orderly
        self._stop.set()
        await self.gone.wait()
