"""Connecting one link of a pod to a network card of its VM: the models.

``tcfilter`` puts a tap beside the link and has the kernel redirect every frame from
either to the other before its own stack sees it. It works with whatever the link is,
and the link keeps its addresses, so that the host's tools see what they know. ``macvtap``
takes the frames with less work for the kernel, from links that allow it.

Synchronous, in a worker thread; called in the pod's network namespace.

Source: kata-containers ``docs/design/architecture/networking.md``; tc-mirred(8).
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shim.errors import FailedPrecondition, Internal
from shim.net import pci, tc
from shim.net.links import Function, Link
from shim.net.macvtap import add_macvtap, open_macvtap
from shim.net.netlink import (
    RTM_NEWLINK,
    RouteSocket,
    attribute,
    delete_link,
    delete_qdisc,
    link_index,
    link_message,
)
from shim.net.rtnl import IFF_UP
from shim.net.scan import OURS
from shim.net.tap import keep, open_tap
from shim.pod.vfio_groups import FOLDER, functions_of, vfio_device
from vmm.spec import NetDevice, VfioDevice

Model = Literal["tcfilter", "macvtap", "none"]

_IFLA_MTU, _IFLA_AF_SPEC = 4, 26
_AF_INET6, _IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 10, 8, 1


@dataclass(frozen=True, slots=True)
class Wiring:
    """How a pod's links are connected.

    Args:
        model: by what.
        queues: pairs of queues of a card.
        vhost: the host's kernel moves the packets.
        rx_rate, tx_rate: bits per second into and out of the guest, 0 for any.
        open_taps: the VMM takes descriptors; otherwise it opens the tap by its name.
        cold_functions, hot_functions: a link that is a PCI function is handed on whole, at boot
            or later.
    """

    model: Model = "tcfilter"
    queues: int = 1
    vhost: bool = False
    rx_rate: int = 0
    tx_rate: int = 0
    open_taps: bool = True
    cold_functions: bool = False
    hot_functions: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Something made in the pod's namespace, or taken, as the ledger has it."""

    kind: Literal["netdev", "qdisc", "pci_driver"]
    fields: dict[str, str]


def tap_name(link: Link) -> str:
    """Return the name of the tap beside a link, unique in the pod's namespace."""
    return f"tap{link.index}{OURS}"


def parts(link: Link, wiring: Wiring) -> list[Part]:
    """Return what :func:`connect` makes, in order; a tap's own qdiscs go with it."""
    if (taken := link.function) is not None:
        if taken.driver == pci.VFIO:  # somebody has given it to VMs for good
            return []
        return [Part("pci_driver", {"address": taken.address, "driver": taken.driver})]
    made = [Part("netdev", {"name": tap_name(link)})]
    if wiring.model == "tcfilter":
        made.append(Part("qdisc", {"link": link.name, "parent": "ingress"}))
    if wiring.tx_rate:
        made.append(Part("qdisc", {"link": link.name, "parent": "root"}))
    return made


def remove(part: Part) -> None:
    """Undo a part; no error when it is gone.

    Raises:
        OSError: the kernel refuses.
    """
    if part.kind == "pci_driver":
        pci.give_back(part.fields["address"], part.fields["driver"])
    elif part.kind == "netdev":
        delete_link(part.fields["name"])
    else:
        delete_qdisc(part.fields["link"], part.fields["parent"])


def connect(channel: RouteSocket, link: Link, wiring: Wiring) -> NetDevice:
    """Connect a link to a card; when that fails, nothing of it is left.

    Args:
        channel: a netlink socket of the pod's namespace, which the thread is in.
        link: the pod's link.
        wiring: how.

    Returns:
        The card; its descriptors are the caller's to close.

    Raises:
        FailedPrecondition: the link is in use for the same by somebody else.
        Internal: the kernel can't do it; the text says what failed.
    """
    making = _Making(channel, link, wiring)
    try:
        making.make()
    except BaseException as error:
        making.undo()
        if isinstance(error, OSError):
            what = f"link {link.name} of the pod: cannot {making.doing}: {error.strerror}"
            raise Internal(what) from error
        raise
    return making.device()


def function_at(address: str) -> Function:
    """Look at a PCI function that was asked for by its address.

    Raises:
        FailedPrecondition: a VM can't have it.
    """
    group = pci.group_of(address)
    if not group:
        raise FailedPrecondition(
            f"{address} can't be handed on: the host has no such PCI function, or no IOMMU in use"
        )
    return Function(address, pci.driver_of(address), group)


def take_function(link: Link, function: Function) -> VfioDevice:
    """Take the function that a link is from its driver; when that fails, it has it again.

    Args:
        link: the pod's link, which is gone then.
        function: what it is.

    Raises:
        FailedPrecondition: others of its IOMMU group are in use on the host.
        Internal: the kernel can't do it.
    """
    try:
        pci.take(function.address)
        functions_of(f"{FOLDER}{function.group}")
    except BaseException as error:
        if function.driver != pci.VFIO:
            pci.give_back(function.address, function.driver)
        if isinstance(error, OSError):
            what = f"link {link.name} of the pod: cannot hand on {function.address}"
            raise Internal(f"{what}: {error.strerror}") from error
        raise
    return vfio_device(function.address)


def on_tap(link: Link, tap: str, queues: int, wiring: Wiring) -> NetDevice:
    """Make a card on a tap of somebody's, which stays theirs.

    Args:
        link: what the guest's link is to look like.
        tap: the tap's name in the namespace that the thread is in.
        queues: pairs of queues.
        wiring: whether the VMM takes descriptors.

    Raises:
        Internal: there is no such tap, or it is in use.
    """
    name = f"net{link.index}"
    if not wiring.open_taps:
        return NetDevice(name, link.mac, tap=tap, mtu=link.mtu)
    try:
        with RouteSocket() as channel:
            if not link_index(channel, tap):  # opening would make one
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        fds = open_tap(tap, queues, exclusive=False)
    except OSError as error:
        raise Internal(f"cannot open the tap {tap} for {link.name}: {error.strerror}") from error
    return NetDevice(name, link.mac, fds=fds, mtu=link.mtu, vhost=wiring.vhost)


def on_socket(link: Link, path: Path, queues: int, queue_size: int) -> NetDevice:
    """Make a card that a vhost-user daemon of somebody's serves.

    Args:
        link: what the guest's link is to look like.
        path: where the daemon listens.
        queues: pairs of queues.
        queue_size: entries of each; 0 leaves the default.

    Raises:
        Internal: nothing listens there.
    """
    # Not tried: a daemon serves one client, and may end with it.
    if not path.is_socket():
        raise Internal(f"no vhost-user daemon listens at {path} for {link.name}")
    return NetDevice(
        f"net{link.index}",
        link.mac,
        socket=path,
        queues=queues,
        queue_size=queue_size,
        mtu=link.mtu,
    )


class _Making:
    """The steps of connecting, what is made so far, and what is being done."""

    def __init__(self, channel: RouteSocket, link: Link, wiring: Wiring) -> None:
        self.doing = ""
        self._channel = channel
        self._link = link
        self._wiring = wiring
        self._tap = tap_name(link)
        self._fds: tuple[int, ...] = ()
        self._made: list[Part] = []

    def make(self) -> None:
        link, wiring, channel = self._link, self._wiring, self._channel
        if not link.is_up:
            self.doing = "set it up"
            channel.request(RTM_NEWLINK, 0, link_message(link.index, IFF_UP, IFF_UP))
        if wiring.model == "macvtap":
            index = self._add_macvtap()
        else:
            index = self._add_tap()
            self._redirect(index)
        if wiring.rx_rate:
            self.doing = f"limit the rate of {self._tap} (CONFIG_NET_SCH_TBF)"
            tc.limit_rate(channel, index, wiring.rx_rate)
        if wiring.tx_rate:
            self.doing = "limit its rate (CONFIG_NET_SCH_TBF, no other root qdisc)"
            tc.limit_rate(channel, link.index, wiring.tx_rate)
            self._made.append(Part("qdisc", {"link": link.name, "parent": "root"}))

    def undo(self) -> None:
        for fd in self._fds:
            os.close(fd)
        for part in reversed(self._made):
            remove(part)

    def device(self) -> NetDevice:
        link, wiring = self._link, self._wiring
        name = f"net{link.index}"
        if wiring.open_taps:
            return NetDevice(name, link.mac, fds=self._fds, mtu=link.mtu, vhost=wiring.vhost)
        for fd in self._fds:
            os.close(fd)
        return NetDevice(name, link.mac, tap=self._tap, mtu=link.mtu, vhost=wiring.vhost)

    def _add_tap(self) -> int:
        self.doing = f"make the tap {self._tap} (see /dev/net/tun)"
        try:
            self._fds = open_tap(self._tap, self._wiring.queues)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise self._in_use(f"a tap {self._tap} beside it") from error
        if not self._wiring.open_taps:
            self._made.append(Part("netdev", {"name": self._tap}))
            keep(self._fds[0])
        index = link_index(self._channel, self._tap)
        self.doing = f"set up the tap {self._tap}"
        _bring_up(self._channel, index, self._link.mtu)
        return index

    def _add_macvtap(self) -> int:
        if not self._wiring.open_taps:
            raise FailedPrecondition(
                "internetworking_model = 'macvtap' needs a hypervisor that takes open taps"
            )
        self.doing = f"make the macvtap {self._tap} (CONFIG_MACVTAP; a macvlan takes none)"
        add_macvtap(self._channel, self._tap, self._link.index, self._link.mtu)
        self._made.append(Part("netdev", {"name": self._tap}))
        self.doing = f"open the macvtap {self._tap}"
        self._fds = open_macvtap(self._tap, self._wiring.queues)
        return link_index(self._channel, self._tap)

    def _redirect(self, tap: int) -> None:
        link = self._link
        self.doing = f"redirect it to {self._tap} (CONFIG_NET_SCH_INGRESS)"
        try:
            tc.add_ingress(self._channel, link.index)
        except FileExistsError as error:
            raise self._in_use(
                f"an ingress qdisc already (tc qdisc show dev {link.name})"
            ) from error
        self._made.append(Part("qdisc", {"link": link.name, "parent": "ingress"}))
        tc.add_ingress(self._channel, tap)
        self.doing = (
            f"redirect it to {self._tap} "
            "(CONFIG_NET_CLS_MATCHALL or CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)"
        )
        tc.redirect(self._channel, link.index, tap)
        tc.redirect(self._channel, tap, link.index)

    def _in_use(self, what: str) -> FailedPrecondition:
        text = f"link {self._link.name} has {what}"
        return FailedPrecondition(f"{text}: another pod or runtime uses this network namespace")


def _bring_up(channel: RouteSocket, tap: int, mtu: int) -> None:
    """Give the tap the link's MTU, keep the kernel's own IPv6 off it, and set it up."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE]))
    quiet = attribute(_IFLA_AF_SPEC, attribute(_AF_INET6, mode))
    size = attribute(_IFLA_MTU, struct.pack("=I", mtu))
    try:
        channel.request(RTM_NEWLINK, 0, link_message(tap) + quiet)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            raise  # a kernel without IPv6 needs no quieting
    channel.request(RTM_NEWLINK, 0, link_message(tap, IFF_UP, IFF_UP) + size)
