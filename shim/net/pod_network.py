"""A pod's network: its links connected to the VM, and the guest told about them.

The namespace is looked at and changed in threads that enter it and end; nothing of the
event loop waits for the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from shim.agent import Agent
from shim.config.model import Config
from shim.ledger import Ledger
from shim.log import Log
from shim.net import endpoint as endpoints
from shim.net import guest
from shim.net.endpoint import Endpoint
from shim.net.links import Link, Scan
from shim.net.scan import scan
from shim.netlink import RouteSocket, delete_ingress, in_netns
from shim.rollback import Rollback
from vmm.spec import NetDevice

T = TypeVar("T")

STEP_TIMEOUT_S = 10.0


class PodNetwork:
    """The network of one pod.

    Args:
        netns: descriptor of the pod's network namespace; this object closes its own copy.
        path: the namespace's path, for the ledger; "" when it has none.
        config: the effective configuration.
        ledger: takes what is made before it is.
        cleanup: the pod's rollback stack.
        log: the shim's log.
    """

    def __init__(
        self,
        netns: int,
        path: str,
        *,
        config: Config,
        ledger: Ledger,
        cleanup: Rollback,
        log: Log,
    ) -> None:
        self._netns = os.dup(netns)
        self._path = path
        self._config = config
        self._ledger = ledger
        self._cleanup = cleanup
        self._log = log
        self._endpoints: dict[int, Endpoint] = {}
        self._descriptors: list[int] = []
        cleanup.push("the pod's network namespace", self._close)

    async def connect(self) -> tuple[NetDevice, ...]:
        """Connect every link there is to a card of the VM to come.

        The cards' descriptors are open until :meth:`release_descriptors`.

        Raises:
            FailedPrecondition, Internal: a link can't be connected.
        """
        found = await self._in_netns(self._scan)
        for note in found.notes:
            self._log.warning(f"not connected to the VM: {note}")
        for link in found.links:
            await self._connect(link)
        return tuple(endpoint.device for endpoint in self._endpoints.values())

    def release_descriptors(self) -> None:
        """Close our ends of the cards, once the VMM has its own. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    async def configure(self, agent: Agent) -> None:
        """Have the guest's links look like the pod's.

        Raises:
            TtrpcError: the agent could not do it.
        """
        links = [endpoint.link for endpoint in self._endpoints.values()]
        for link in links:
            await agent.update_interface(guest.interface(link))
        if routes := guest.routes(links):
            await agent.update_routes(routes)
        if neighbours := guest.neighbours(links):
            await agent.add_neighbours(neighbours)

    async def _connect(self, link: Link) -> None:
        path = self._path
        name = endpoints.tap_name(link)
        entries = [
            self._ledger.add("netdev", name=name, netns=path),
            self._ledger.add("ingress", link=link.name, netns=path),
        ]

        async def undo() -> None:
            # The tap goes with its last descriptor, which was the VMM's.
            await self._in_netns(partial(delete_ingress, link.name))
            for entry in entries:
                self._ledger.remove(entry)

        self._cleanup.push(f"the tap of link {link.name}", undo)

        def make() -> Endpoint:
            with RouteSocket() as channel:
                return endpoints.connect_by_tc(channel, link, queues=1)

        endpoint = await self._in_netns(make)
        self._descriptors += endpoint.device.fds
        self._endpoints[link.index] = endpoint

    @staticmethod
    def _scan() -> Scan:
        with RouteSocket() as channel:
            return scan(channel)

    async def _in_netns(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(
            partial(in_netns, self._netns, function, STEP_TIMEOUT_S)
        )

    async def _close(self) -> None:
        self.release_descriptors()
        os.close(self._netns)
