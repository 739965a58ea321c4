"""The kernel's messages on links, addresses, routes and neighbours, decoded.

Pure; see :mod:`shim.net.netlink` for how they are asked for.

Source: rtnetlink(7), the kernel's uapi ``if_link.h``, ``if_addr.h``, ``rtnetlink.h``,
``neighbour.h``.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from shim.net.links import Address, Neighbour, Route
from shim.net.netlink import attribute_list, attributes

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NEXTHOP = struct.Struct("=HBBi")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 56, 57  # since Linux 5.14
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_RTA_PREFSRC, _RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE = 7, 8, 9, 15
_RTAX_MTU = 2
_NDA_DST, _NDA_LLADDR = 1, 2

IFF_UP, IFF_NOARP = 1, 0x80
ARPHRD_ETHER = 1
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTPROT_KERNEL = 2
RTM_F_CLONED = 0x200
NUD_PERMANENT = 0x80
_NEXTHOP_FLAGS = 0x4  # onlink; the others tell of a state, not of a wish
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# Metrics the kernel gives when nobody asked for one; the guest's would give the same.
_DEFAULT_METRIC_V6 = 1024


@dataclass(frozen=True, slots=True)
class RawLink:
    """A link as the kernel describes it, whatever it is."""

    index: int
    hardware: int
    flags: int
    name: str
    mac: str
    mtu: int
    kind: str
    master: int
    bus: str = ""
    parent: str = ""


@dataclass(frozen=True, slots=True)
class RawRoute:
    """A route with what decides whether the guest needs it, and the links it leaves by."""

    route: Route
    index: int
    table: int
    kind: int
    protocol: int
    flags: int


def parse_link(body: bytes) -> RawLink:
    """Decode the body of an ``RTM_NEWLINK``."""
    _family, hardware, index, flags, _change = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    return RawLink(
        index=index,
        hardware=hardware,
        flags=flags,
        name=_text(found.get(_IFLA_IFNAME, b"")),
        mac=_mac(found.get(_IFLA_ADDRESS, b"")),
        mtu=_number(found.get(_IFLA_MTU, b"")),
        kind=_text(info.get(_IFLA_INFO_KIND, b"")),
        master=_number(found.get(_IFLA_MASTER, b"")),
        bus=_text(found.get(_IFLA_PARENT_DEV_BUS_NAME, b"")),
        parent=_text(found.get(_IFLA_PARENT_DEV_NAME, b"")),
    )


def parse_address(body: bytes) -> tuple[int, Address] | None:
    """Decode the body of an ``RTM_NEWADDR``: the link's index and the address."""
    family, prefix, _flags, _scope, index = _ADDRESS.unpack_from(body)
    found = attributes(body[_ADDRESS.size :])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if family not in _FAMILIES or not packed:
        return None
    return index, Address(socket.inet_ntop(family, packed), prefix)


def parse_route(body: bytes) -> list[RawRoute]:
    """Decode the body of an ``RTM_NEWROUTE``: one route for each next hop."""
    family, prefix, _source, _tos, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    if family not in _FAMILIES:
        return []
    found = attributes(body[_ROUTE.size :])
    table = _number(found[_RTA_TABLE]) if _RTA_TABLE in found else table
    metrics = attributes(found.get(_RTA_METRICS, b""))

    def text(key: int, among: dict[int, bytes] = found) -> str:
        return socket.inet_ntop(family, among[key]) if among.get(key) else ""

    def made(index: int, gateway: str, nexthop_flags: int) -> RawRoute:
        is_ipv6 = family == socket.AF_INET6
        metric = _number(found.get(_RTA_PRIORITY, b""))
        route = Route(
            dest=f"{text(_RTA_DST)}/{prefix}" if found.get(_RTA_DST) and prefix else "",
            is_ipv6=is_ipv6,
            gateway=gateway,
            source=text(_RTA_PREFSRC),
            scope=scope,
            flags=nexthop_flags & _NEXTHOP_FLAGS,
            mtu=_number(metrics.get(_RTAX_MTU, b"")),
            metric=0 if is_ipv6 and metric == _DEFAULT_METRIC_V6 else metric,
        )
        return RawRoute(route, index, table, kind, protocol, flags)

    if _RTA_MULTIPATH not in found:
        return [made(_number(found.get(_RTA_OIF, b"")), text(_RTA_GATEWAY), flags)]
    hops = []
    rest = found[_RTA_MULTIPATH]
    while len(rest) >= _NEXTHOP.size:
        size, hop_flags, _weight, index = _NEXTHOP.unpack_from(rest)
        if size < _NEXTHOP.size:
            break
        inner = dict(attribute_list(rest[_NEXTHOP.size : size]))
        hops.append(made(index, text(_RTA_GATEWAY, inner), hop_flags))
        rest = rest[size + 3 & ~3 :]
    return hops


def parse_neighbour(body: bytes) -> tuple[int, Neighbour] | None:
    """Decode the body of an ``RTM_NEWNEIGH``: the link's index and the entry."""
    family, index, state, flags, _kind = _NEIGHBOUR.unpack_from(body)
    found = attributes(body[_NEIGHBOUR.size :])
    packed, mac = found.get(_NDA_DST), found.get(_NDA_LLADDR)
    if family not in _FAMILIES or not packed or not mac:
        return None
    return index, Neighbour(socket.inet_ntop(family, packed), _mac(mac), state, flags)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="surrogateescape")


def _mac(data: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in data)


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "little" if _LITTLE else "big")


_LITTLE = struct.pack("=H", 1) == b"\1\0"
