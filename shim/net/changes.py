"""What has to be done so that the VM's network is again like the pod's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shim.net.links import Link, Scan


@dataclass(frozen=True, slots=True)
class Changes:
    """The way from what is connected to what there is.

    Args:
        gone: numbers of links that exist no more.
        new: links that have no card yet.
        changed: connected links whose name, MTU or addresses are others now.
        routes: connected links with the routes the guest has not been told of; all of a
            changed link's, as the guest's kernel drops some with an address.
        neighbours: connected links with the neighbours the guest has not been told of.
    """

    gone: tuple[int, ...] = ()
    new: tuple[Link, ...] = ()
    changed: tuple[Link, ...] = ()
    routes: tuple[Link, ...] = ()
    neighbours: tuple[Link, ...] = ()


def plan_changes(connected: Mapping[int, Link], found: Scan) -> Changes:
    """Compare.

    Args:
        connected: links that have a card, as the guest was last told, by number.
        found: what there is now.
    """
    changed, routes, neighbours = [], [], []
    for link in found.links:
        old = connected.get(link.index)
        if old is None:
            continue
        is_changed = _shown(link) != _shown(old)
        if is_changed:
            changed.append(link)
        told = () if is_changed else old.routes
        if more := tuple(route for route in link.routes if route not in told):
            routes.append(replace(link, routes=more))
        known = () if is_changed else old.neighbours
        if entries := tuple(entry for entry in link.neighbours if entry not in known):
            neighbours.append(replace(link, neighbours=entries))
    return Changes(
        gone=tuple(index for index in connected if index not in found.present),
        new=tuple(link for link in found.links if link.index not in connected),
        changed=tuple(changed),
        routes=tuple(routes),
        neighbours=tuple(neighbours),
    )


def _shown(link: Link) -> tuple[object, ...]:
    """What UpdateInterface sets."""
    return link.name, link.mtu, link.no_arp, frozenset(link.addresses)
