"""Connecting one link of a pod to a network card of its VM: the models.

``tcfilter`` puts a tap beside the link and has the kernel redirect every frame from
either to the other before its own stack sees it. It works with whatever the link is,
and the link keeps its addresses, so that the host's tools see what they know.

Synchronous, in a worker thread; called in the pod's network namespace.

Source: kata-containers ``docs/design/architecture/networking.md``; tc-mirred(8).
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from shim.errors import FailedPrecondition, Internal
from shim.net import tc
from shim.net.links import Link
from shim.net.rtnl import IFF_UP
from shim.net.scan import OURS
from shim.net.tap import open_tap
from shim.netlink import (
    RTM_NEWLINK,
    RouteSocket,
    attribute,
    delete_ingress,
    link_index,
    link_message,
)
from vmm.spec import NetDevice

_IFLA_MTU, _IFLA_AF_SPEC = 4, 26
_AF_INET6, _IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 10, 8, 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's link and the card that stands for it in the VM.

    Args:
        link: the pod's link.
        device: the card; its descriptors are the caller's to close.
    """

    link: Link
    device: NetDevice


def tap_name(link: Link) -> str:
    """Return the name of the tap beside a link, unique in the pod's namespace."""
    return f"tap{link.index}{OURS}"


def device_id(link: Link) -> str:
    """Return the name of a link's card in the VM."""
    return f"net{link.index}"


def connect_by_tc(channel: RouteSocket, link: Link, *, queues: int) -> Endpoint:
    """Put a tap beside a link and redirect both ways.

    Args:
        channel: a netlink socket of the pod's namespace, which the thread is in.
        link: the pod's link.
        queues: pairs of queues of the card.

    Raises:
        FailedPrecondition: the link is in use for the same by somebody else.
        Internal: the kernel can't do it; the text says what failed.
    """
    name = tap_name(link)
    try:
        fds = open_tap(name, queues)
    except OSError as error:
        raise _failed(link, f"cannot make the tap {name} (see /dev/net/tun)", error) from error
    owned = False
    try:
        tap = link_index(channel, name)
        _bring_up(channel, tap, link.mtu)
        if not link.is_up:
            channel.request(RTM_NEWLINK, 0, link_message(link.index, IFF_UP, IFF_UP))
        tc.add_ingress(channel, tap)
        _add_ingress(channel, link)
        owned = True
        tc.redirect(channel, link.index, tap)
        tc.redirect(channel, tap, link.index)
    except BaseException as error:
        if owned:
            delete_ingress(link.name)
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise _failed(link, f"cannot redirect it to {name}", error) from error
        raise
    return Endpoint(link, NetDevice(device_id(link), link.mac, fds=fds, mtu=link.mtu))


def _add_ingress(channel: RouteSocket, link: Link) -> None:
    try:
        tc.add_ingress(channel, link.index)
    except FileExistsError as error:
        raise FailedPrecondition(
            f"link {link.name} has an ingress qdisc already (tc qdisc show dev {link.name}): "
            "another pod or runtime uses this network namespace"
        ) from error


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


def _failed(link: Link, what: str, error: OSError) -> Internal:
    return Internal(f"link {link.name} of the pod: {what}: {error.strerror}")
