"""A pod's network: its links connected to the VM, and the guest told about them.

What is there before the VM starts becomes a card it boots with. Links that come later
(``ctr run --cni``, Docker and nerdctl attach between Create and Start) are plugged in, and
changes of addresses, MTU and routes are passed on: a monitor says that something has
changed, a new look says what.

The namespace is looked at and changed in threads that enter it and end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import trio

from shim.agent import Agent
from shim.cleanup.ledger import Entry, Ledger
from shim.cleanup.rollback import Rollback
from shim.errors import FailedPrecondition
from shim.log import Log
from shim.net import endpoint, guest
from shim.net.changes import plan_changes
from shim.net.dan import DirectDevice, DirectNetwork
from shim.net.endpoint import Part, Wiring
from shim.net.host_proxy import HostProxy
from shim.net.links import Link, Scan
from shim.net.local_ports import LocalPorts
from shim.net.monitor import NetworkMonitor
from shim.net.netlink import RouteSocket, in_netns, netns_id
from shim.net.scan import scan
from shim.pod.unplug import unplug
from vmm.hypervisor import Hypervisor
from vmm.spec import AttachedDevice, NetDevice, VfioDevice

T = TypeVar("T")

STEP_TIMEOUT_S = 10.0
DETACH_TIMEOUT_S = 10.0
# Whoever sets a link up does so in several steps; each one heard of delays the look at it.
QUIET_S = 0.02
QUIET_LIMIT_S = 0.2


@dataclass(slots=True)
class _Card:
    """A connected link: as the guest was last told, its device, and what undoes it."""

    link: Link
    device: NetDevice | VfioDevice
    parts: list[Part]
    entries: list[Entry]
    handle: AttachedDevice | None = None


class PodNetwork:
    """The network of one pod.

    Args:
        netns: descriptor of the pod's network namespace; this object closes its own copy.
        path: the namespace's path, for the ledger; "" when it has none.
        wiring: how its links are connected.
        proxy: connects the namespace to the host's network first; None when others have
            given it its links.
        direct: the cards it has instead of those for its links, on taps of somebody's.
        ledger: takes what is made before it is.
        cleanup: the pod's rollback stack.
        log: the shim's log.
    """

    def __init__(
        self,
        netns: int,
        path: str,
        *,
        wiring: Wiring,
        proxy: HostProxy | None = None,
        direct: DirectNetwork | None = None,
        ledger: Ledger,
        cleanup: Rollback,
        log: Log,
    ) -> None:
        self._netns = os.dup(netns)
        self._path = path
        self._wiring = wiring
        self._proxy = proxy
        self._direct = direct
        self._ledger = ledger
        self._log = log
        self._cards: dict[int, _Card] = {}
        self._stale: list[_Card] = []
        self._descriptors: list[int] = []
        self._monitor: NetworkMonitor | None = None
        self._vm: tuple[Hypervisor, Agent] | None = None
        self._refused: dict[int, Link] = {}
        self._later: list[Link] = []
        self._noted: set[str] = set()
        self._heard = False
        self._looking = trio.Lock()
        cleanup.push("the pod's network", self._close, timeout=30.0)

    # -- at boot ----------------------------------------------------------------------

    async def connect(self) -> tuple[NetDevice | VfioDevice, ...]:
        """Connect every link there is to a card of the VM to come.

        A link that is a PCI function to be plugged in follows in :meth:`configure`.

        The cards' descriptors are open until :meth:`release_descriptors`.

        Raises:
            FailedPrecondition, Internal: a link can't be connected.
        """
        if self._direct is not None:
            for direct in self._direct.devices:
                await self._open_direct(direct)
            return tuple(card.device for card in self._cards.values())
        if self._proxy is not None:
            await self._proxy.start(self._netns)
        # Opened before the first look, so that nothing is missed after it.
        self._monitor = await self._in_netns(NetworkMonitor)
        for link in (await self._scan()).links:
            if link.function is None or self._wiring.cold_functions:
                await self._connect(link)
            else:
                self._later.append(link)
        return tuple(card.device for card in self._cards.values())

    def release_descriptors(self) -> None:
        """Close our ends of the cards, once the VMM has its own. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    async def configure(self, hypervisor: Hypervisor, agent: Agent) -> None:
        """Have the guest's links look like the pod's.

        Args:
            hypervisor: the pod's VM, which runs.
            agent: its agent.

        Raises:
            TtrpcError: the agent could not do it.
        """
        self._vm = (hypervisor, agent)
        links = [card.link for card in self._cards.values()]
        for card in self._cards.values():
            path = ""
            if isinstance(card.device, VfioDevice):  # its address may be another in the guest
                path = str(hypervisor.devices[card.device.id].address or "")
            await agent.update_interface(guest.interface(card.link, path=path))
        while self._later:
            await self._plug(hypervisor, agent, self._later.pop(0))
        await self._tell_routes(agent, links)
        await self._tell_neighbours(agent, links)

    # -- while the VM runs ------------------------------------------------------------

    async def watch(self) -> None:
        """Follow the pod's network until cancelled."""
        assert self._vm is not None
        async with trio.open_nursery() as nursery:
            if self._monitor is not None:
                nursery.start_soon(self._watch_namespace, self._monitor)
            ports: HostProxy | LocalPorts | None = self._proxy
            if ports is None and self._path:  # nobody finds one without a path
                ports = LocalPorts(self._netns, self._log)
            if ports is not None:
                nursery.start_soon(self._watch_ports, ports, self._vm[1])

    async def _watch_ports(self, ports: HostProxy | LocalPorts, agent: Agent) -> None:
        try:
            await ports.reflect(agent)
        except Exception as err:
            self._log.error(f"the pod's ports are no longer followed at the host: {err!r}")

    async def _watch_namespace(self, monitor: NetworkMonitor) -> None:
        while True:
            await monitor.wait()
            with trio.move_on_after(QUIET_LIMIT_S):
                await self._quiet(monitor)
            await self._follow()

    async def settle(self) -> None:
        """Return when the guest has what the pod's namespace has now.

        Called before a container starts, so that it finds the links attached since Create.
        """
        await self._follow()

    async def _quiet(self, monitor: NetworkMonitor) -> None:
        """Return when nothing has been heard for a moment."""
        while True:
            self._heard = monitor.drain() or self._heard
            with trio.move_on_after(QUIET_S) as moment:
                await monitor.wait()
            if moment.cancelled_caught:
                return

    async def _follow(self) -> None:
        async with self._looking:
            if self._monitor is None or self._vm is None:
                return
            if not (self._monitor.drain() or self._heard):
                return
            self._heard = False
            try:
                await self._apply(*self._vm)
            except Exception as err:
                # A pod that runs is worth more than its newest link.
                self._log.error(f"the pod's network has changed, the VM's has not: {err!r}")

    async def _apply(self, hypervisor: Hypervisor, agent: Agent) -> None:
        found = await self._scan()
        connected = {index: card.link for index, card in self._cards.items()}
        changes = plan_changes(connected, found)
        for index in changes.gone:
            if self._cards[index].link.function is None:  # it went when we took it
                await self._unplug(hypervisor, agent, index)
        for link in changes.new:
            if self._refused.get(link.index) == link:
                continue
            try:
                await self._plug(hypervisor, agent, link)
                self._refused.pop(link.index, None)
            except Exception as err:
                self._refused[link.index] = link
                self._log.error(f"link {link.name} is not connected to the VM: {err!r}")
        for link in changes.changed:
            card = self._cards[link.index]
            # A guest's driver takes no MTU beyond the one its card was made with.
            most = card.device.mtu if isinstance(card.device, NetDevice) else link.mtu
            fitting = replace(link, mtu=min(link.mtu, most))
            await agent.update_interface(guest.interface(fitting))
            if link.name != card.link.name:
                self._rename(card, link)
        await self._tell_routes(agent, changes.routes)
        await self._tell_neighbours(agent, changes.neighbours)
        for link in found.links:
            if (known := self._cards.get(link.index)) is not None:
                known.link = replace(link, function=known.link.function)

    async def _plug(self, hypervisor: Hypervisor, agent: Agent, link: Link) -> None:
        if link.function is not None and not self._wiring.hot_functions:
            link = replace(link, function=None)
        kind = "net_hot" if link.function is None else "vfio_hot"
        hypervisor.capabilities.require(kind, f"link {link.name} came after the VM's start")
        card = await self._connect(link)
        try:
            card.handle = await hypervisor.attach(card.device)
            path = str(card.handle.address or "")
            await agent.update_interface(guest.interface(link, path=path))
            await self._tell_routes(agent, [link])
            await self._tell_neighbours(agent, [link])
        except BaseException:
            with trio.CancelScope(shield=True):
                if card.handle is not None:
                    await unplug(hypervisor, agent, card.handle, DETACH_TIMEOUT_S)
                await self._forget(card)
            raise
        finally:
            self.release_descriptors()
        self._log.info(f"link {link.name} is plugged into the VM")

    async def _unplug(self, hypervisor: Hypervisor, agent: Agent, index: int) -> None:
        card = self._cards[index]
        name = card.link.name
        if card.handle is None:
            # A card that was there at boot stays; out of the way of a link of the same name.
            stale = replace(card.link, name=f"gone{index}", addresses=())
            await agent.update_interface(guest.interface(stale))
            self._stale.append(self._cards.pop(index))
            self._log.warning(f"link {name} is gone; the VM keeps its card without an address")
            return
        await unplug(hypervisor, agent, card.handle, DETACH_TIMEOUT_S)
        await self._forget(card)
        self._log.info(f"link {name} is gone and unplugged from the VM")

    async def _tell_routes(self, agent: Agent, links: list[Link] | tuple[Link, ...]) -> None:
        if routes := guest.routes(links):
            await agent.update_routes(routes)

    async def _tell_neighbours(self, agent: Agent, links: list[Link] | tuple[Link, ...]) -> None:
        if neighbours := guest.neighbours(links):
            await agent.add_neighbours(neighbours)

    # -- the namespace ----------------------------------------------------------------

    async def _connect(self, link: Link) -> _Card:
        made = endpoint.parts(link, self._wiring)
        # A namespace without a path goes, with all in it, when nobody is in it any more.
        where = {"netns": self._path, "netns_id": netns_id(self._netns)}
        entries = [
            self._ledger.add(part.kind, **part.fields, **where)
            for part in made
            if self._path or part.kind == "pci_driver"
        ]

        def make() -> NetDevice | VfioDevice:
            if link.function is not None:
                return endpoint.take_function(link, link.function)
            with RouteSocket() as channel:
                return endpoint.connect(channel, link, self._wiring)

        try:
            device = await self._in_netns(make)
        except BaseException:
            for entry in entries:
                self._ledger.remove(entry)
            raise
        if isinstance(device, NetDevice):
            self._descriptors += device.fds
        card = self._cards[link.index] = _Card(link, device, made, entries)
        return card

    async def _open_direct(self, direct: DirectDevice) -> None:
        if direct.address:
            function = await self._in_netns(partial(endpoint.function_at, direct.address))
            link = replace(direct.link, function=function)
            if self._wiring.cold_functions:
                await self._connect(link)
            elif self._wiring.hot_functions:
                self._later.append(link)
            else:
                raise FailedPrecondition(
                    f"{direct.address} as {link.name}: the hypervisor's cold_plug_vfio and "
                    "hot_plug_vfio are 'no-port'"
                )
            return

        def make() -> NetDevice:
            if direct.socket is not None:
                return endpoint.on_socket(
                    direct.link, direct.socket, direct.queues, direct.queue_size
                )
            return endpoint.on_tap(direct.link, direct.tap, direct.queues, self._wiring)

        device = await self._in_netns(make)
        self._descriptors += device.fds
        self._cards[direct.link.index] = _Card(direct.link, device, [], [])

    async def _forget(self, card: _Card) -> None:
        """Undo a card that no VM has (any more)."""
        for part in reversed(card.parts):
            await self._in_netns(partial(endpoint.remove, part))
        for entry in card.entries:
            self._ledger.remove(entry)
        self._cards.pop(card.link.index, None)

    def _rename(self, card: _Card, link: Link) -> None:
        """Have what undoes a card know its link's present name."""
        card.parts = endpoint.parts(link, self._wiring)
        for part, entry in zip(card.parts, card.entries, strict=False):
            self._ledger.update(entry, **part.fields)

    async def _scan(self) -> Scan:
        def look() -> Scan:
            with RouteSocket() as channel:
                return scan(channel)

        found = await self._in_netns(look)
        for note in found.notes:
            self._note(f"not connected to the VM: {note}")
        if self._wiring.cold_functions or self._wiring.hot_functions:
            return found
        for link in found.links:
            if link.function is not None:
                self._note(
                    f"link {link.name} is all of {link.function.address}, and its frames are "
                    "redirected: with cold_plug_vfio or hot_plug_vfio the VM would have it whole"
                )
        return replace(found, links=tuple(replace(link, function=None) for link in found.links))

    def _note(self, text: str) -> None:
        """Warn once."""
        if text not in self._noted:
            self._noted.add(text)
            self._log.warning(text)

    async def _in_netns(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(
            partial(in_netns, self._netns, function, STEP_TIMEOUT_S)
        )

    async def _close(self) -> None:
        self._vm = None
        self.release_descriptors()
        for card in [*self._stale, *self._cards.values()]:
            try:
                await self._forget(card)
            except OSError as err:
                self._log.warning(f"could not undo the tap of link {card.link.name}: {err}")
        if self._monitor is not None:
            self._monitor.close()
        os.close(self._netns)
