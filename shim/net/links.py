"""What a pod's network namespace holds, as plain values.

Addresses are texts as ``inet_ntop`` writes them, hardware addresses in lower case with
colons. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address of a link.

    Args:
        address: IPv4 or IPv6.
        prefix: length of the network's prefix in bits.
    """

    address: str
    prefix: int

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.address


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table.

    Args:
        dest: network as ``address/prefix``, "" for the default route.
        is_ipv6: its family.
        gateway: next hop, "" when the network is on the link.
        source: preferred source address, or "".
        scope: ``RT_SCOPE_*``.
        flags: ``RTNH_F_*``, such as onlink (4).
        mtu: in bytes, 0 for the link's.
        metric: the lower the better; 0 is the kernel's default.
    """

    dest: str
    is_ipv6: bool
    gateway: str = ""
    source: str = ""
    scope: int = 0
    flags: int = 0
    mtu: int = 0
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent entry of a link's ARP or NDP table.

    Args:
        address: IP address.
        mac: its hardware address.
        state: ``NUD_*`` bits.
        flags: ``NTF_*`` bits.
    """

    address: str
    mac: str
    state: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function that can be handed to a VM, as an IOMMU keeps it apart.

    Args:
        address: such as ``0000:03:10.1``.
        driver: which has it on the host.
        group: number of its IOMMU group.
    """

    address: str
    driver: str
    group: str


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a pod that can be connected to its VM.

    Args:
        index: the kernel's number of it, in its namespace.
        name: its name, which the guest's gets too.
        kind: ``veth``, ``macvlan``, …; "" for a physical device.
        mac: hardware address.
        mtu: in bytes.
        is_up: whether it is administratively up.
        no_arp: whether it resolves no addresses.
        addresses, routes, neighbours: what it is configured with.
        function: what the link is all of; None for every other.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    is_up: bool = True
    no_arp: bool = False
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    function: Function | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in a network namespace.

    Args:
        links: those that a VM can be connected to, in the kernel's order.
        present: the numbers of all links, whatever they are.
        notes: what was left out and why, a line each.
    """

    links: tuple[Link, ...]
    present: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
