"""What the guest's agent is told about the pod's network. Pure.

Source: kata-containers ``src/libs/protocols/protos/types.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable

from protos.kata import types_pb2
from shim.net.links import Link
from shim.net.rtnl import IFF_NOARP


def interface(link: Link, *, path: str = "") -> types_pb2.Interface:
    """Describe a link as the guest shall have it.

    Args:
        link: the pod's link.
        path: guest PCI path of its network card when that has just been plugged in; ""
            for one that was there at boot.
    """
    return types_pb2.Interface(
        device=link.name,
        name=link.name,
        IPAddresses=[
            types_pb2.IPAddress(
                family=_family(address.is_ipv6),
                address=address.address,
                mask=str(address.prefix),
            )
            for address in link.addresses
        ],
        mtu=link.mtu,
        hwAddr=link.mac,
        devicePath=path,
        type=link.kind,
        raw_flags=IFF_NOARP if link.no_arp else 0,
    )


def routes(links: Iterable[Link]) -> list[types_pb2.Route]:
    """Describe the routes of links, those without a gateway first, as others need them.

    An agent that knows no metrics lets the last of two routes to one network count, so the
    better ones come later.
    """
    found = [
        types_pb2.Route(
            dest=route.dest,
            gateway=route.gateway,
            device=link.name,
            source=route.source,
            scope=route.scope,
            family=_family(route.is_ipv6),
            flags=route.flags,
            mtu=route.mtu,
            metric=route.metric,
        )
        for link in links
        for route in link.routes
    ]
    return sorted(found, key=lambda route: (bool(route.gateway), -route.metric))


def neighbours(links: Iterable[Link]) -> list[types_pb2.ARPNeighbor]:
    """Describe the permanent neighbours of links."""
    return [
        types_pb2.ARPNeighbor(
            toIPAddress=types_pb2.IPAddress(
                family=_family(":" in entry.address), address=entry.address
            ),
            device=link.name,
            lladdr=entry.mac,
            state=entry.state,
            flags=entry.flags,
        )
        for link in links
        for entry in link.neighbours
    ]


def _family(is_ipv6: bool) -> types_pb2.IPFamily:
    return types_pb2.IPFamily.v6 if is_ipv6 else types_pb2.IPFamily.v4
