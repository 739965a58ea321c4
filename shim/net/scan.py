"""Look at a pod's network namespace: links, addresses, routes, permanent neighbours.

Standard library only and synchronous: four questions to the kernel.
"""

from __future__ import annotations

import errno
import struct
from collections import defaultdict

from shim.net import pci, rtnl
from shim.net.links import Address, Function, Link, Neighbour, Route, Scan
from shim.net.netlink import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RouteSocket,
    link_message,
)

OURS = "_katapy"
"""How the names of our own taps end; these are never connected to a guest."""

# Each new namespace has these when their modules are loaded; nobody asked for them.
_FALLBACKS = frozenset(
    {"gre0", "gretap0", "erspan0", "sit0", "tunl0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0"}
)
_LINK_SCOPE_PREFIX = "fe80:"


def scan(channel: RouteSocket) -> Scan:
    """Return the links of the namespace that a VM can be connected to.

    That is every device that speaks Ethernet and is up or has an address, but the
    loopback, what belongs to a bridge or bond in the namespace, and our own taps.

    Args:
        channel: a netlink socket of the namespace.

    Raises:
        OSError: the kernel does not answer.
    """
    raw = [rtnl.parse_link(body) for body in channel.dump(RTM_GETLINK, link_message(0))]
    present = frozenset(link.index for link in raw)
    if all(_is_ours_or_builtin(link) for link in raw):
        return Scan((), present)  # the usual case of a namespace that has just been made
    addresses = _addresses(channel)
    routes = _routes(channel)
    neighbours = _neighbours(channel)
    links, notes = [], []
    for link in raw:
        if _is_ours_or_builtin(link):
            continue
        found = tuple(addresses[link.index])
        if reason := _reason_to_skip(link, found):
            notes.append(f"link {link.name}: {reason}")
            continue
        links.append(
            Link(
                index=link.index,
                name=link.name,
                kind=link.kind,
                mac=link.mac,
                mtu=link.mtu,
                is_up=bool(link.flags & rtnl.IFF_UP),
                no_arp=bool(link.flags & rtnl.IFF_NOARP),
                addresses=found,
                routes=tuple(routes[link.index]),
                neighbours=tuple(neighbours[link.index]),
                function=_function(link),
            )
        )
    return Scan(tuple(links), present, tuple(notes))


def _function(link: rtnl.RawLink) -> Function | None:
    """The PCI function that a link is all of, where a VM could have it."""
    if link.kind:  # made of something else, as vlans are
        return None
    address = pci.function_of(link.bus, link.parent)
    group = pci.group_of(address) if address else ""
    return Function(address, pci.driver_of(address), group) if group else None


def _is_ours_or_builtin(link: rtnl.RawLink) -> bool:
    ours = link.name.endswith(OURS) and link.kind in ("tun", "macvtap")
    return link.name == "lo" or link.name in _FALLBACKS or ours


def _reason_to_skip(link: rtnl.RawLink, addresses: tuple[Address, ...]) -> str:
    if link.hardware != rtnl.ARPHRD_ETHER or not link.mac:
        return "is no Ethernet device, which is all a virtual network card can be"
    if link.master:
        return "belongs to a bridge or bond in the pod's namespace"
    if not link.flags & rtnl.IFF_UP and not addresses:
        return "is down and has no address"
    return ""


def _addresses(channel: RouteSocket) -> defaultdict[int, list[Address]]:
    found: defaultdict[int, list[Address]] = defaultdict(list)
    for body in channel.dump(RTM_GETADDR, bytes(8)):
        if parsed := rtnl.parse_address(body):
            index, address = parsed
            # The guest's kernel makes its own link-local address from the same MAC.
            if not address.address.startswith(_LINK_SCOPE_PREFIX):
                found[index].append(address)
    return found


def _routes(channel: RouteSocket) -> defaultdict[int, list[Route]]:
    found: defaultdict[int, list[Route]] = defaultdict(list)
    for body in channel.dump(RTM_GETROUTE, bytes(12)):
        for raw in rtnl.parse_route(body):
            wanted = (
                raw.table == rtnl.RT_TABLE_MAIN
                and raw.kind == rtnl.RTN_UNICAST
                # The guest's kernel makes these itself from the addresses.
                and raw.protocol != rtnl.RTPROT_KERNEL
                and not raw.flags & rtnl.RTM_F_CLONED
            )
            if wanted:
                found[raw.index].append(raw.route)
    return found


def _neighbours(channel: RouteSocket) -> defaultdict[int, list[Neighbour]]:
    found: defaultdict[int, list[Neighbour]] = defaultdict(list)
    try:
        bodies = channel.dump(RTM_GETNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return found
    for body in bodies:
        parsed = rtnl.parse_neighbour(body)
        if parsed and parsed[1].state & rtnl.NUD_PERMANENT:
            found[parsed[0]].append(parsed[1])
    return found
