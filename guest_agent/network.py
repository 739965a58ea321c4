"""The RPCs about the guest's network: links, addresses, routes, neighbours.

Source: rtnetlink(7); Kata's agent semantics.
"""

from __future__ import annotations

import _socket
import errno
import os
from _struct import pack, unpack_from

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import block
from .netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    Netlink,
    attribute,
    attributes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from protos.lite import Message

    from .loop import Loop

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 7, 8, 15
_RTAX_MTU = 2
_NDA_DST, _NDA_LLADDR = 1, 2
_IFF_UP, _IFF_NOARP = 1, 0x80
_MAIN_TABLE, _PROTOCOL_STATIC, _UNICAST = 254, 4, 1
_FAMILIES = (_socket.AF_INET, _socket.AF_INET6)
_RTM_F_CLONED = 0x200
_SCOPE_LINK = 253
_FE80 = b"\xfe\x80"
_DRIVER_SECONDS = 20.0


class Link:
    """One network device as the kernel describes it."""

    __slots__ = ("flags", "index", "kind", "mac", "mtu", "name")

    def __init__(self, body: bytes) -> None:
        _family, _type, self.index, self.flags, _change = unpack_from("=BxHiII", body)
        found = attributes(body[16:])
        self.name = found[_IFLA_IFNAME].rstrip(b"\0").decode()
        self.mac = ":".join(f"{octet:02x}" for octet in found.get(_IFLA_ADDRESS, b""))
        self.mtu: int = unpack_from("=I", found.get(_IFLA_MTU, bytes(4)))[0]
        info = attributes(found.get(_IFLA_LINKINFO, b""))
        self.kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()


def _links(netlink: Netlink) -> list[Link]:
    return [Link(body) for body in netlink.dump(RTM_GETLINK, bytes(16))]


def _change(
    netlink: Netlink, index: int, attrs: bytes = b"", flags: int = 0, mask: int = 0
) -> None:
    """Change attributes and flags of the device with an index."""
    netlink.request(RTM_NEWLINK, 0, pack("=BxHiII", 0, 0, index, flags, mask) + attrs)


def _parse(address: str) -> tuple[int, bytes]:
    """Family and bytes of an address.

    Raises:
        TtrpcError: INVALID_ARGUMENT.
    """
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    try:
        return family, _socket.inet_pton(family, address)
    except OSError:
        raise TtrpcError(status.INVALID_ARGUMENT, f"bad IP address {address!r}") from None


def _parse_mac(text: str) -> bytes:
    """Bytes of a hardware address.

    Raises:
        TtrpcError: INVALID_ARGUMENT.
    """
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raise TtrpcError(status.INVALID_ARGUMENT, f"bad hardware address {text!r}") from None


def _prefix(text: str, family: int) -> int:
    limit = 32 if family == _socket.AF_INET else 128
    if not text.isdecimal() or int(text) > limit:
        raise TtrpcError(status.INVALID_ARGUMENT, f"bad prefix length {text!r}")
    return int(text)


def _ipv6_disabled() -> bool:
    try:
        with open("/proc/sys/net/ipv6/conf/all/disable_ipv6") as file:
            return file.read().strip() == "1"
    except FileNotFoundError:
        return True


class Network:
    """The guest's network."""

    __slots__ = ("_loop",)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of grpc.AgentService in this class."""
        return {
            "UpdateInterface": self.update_interface,
            "UpdateRoutes": self.update_routes,
            "ListInterfaces": self.list_interfaces,
            "ListRoutes": self.list_routes,
            "AddARPNeighbors": self.add_neighbours,
        }

    async def update_interface(self, request: Message) -> Mapping[str, Any]:
        """UpdateInterface: the link with the MAC address becomes what the request says.

        One at a place that the request names gets the address, if it has another: a card of the
        host's comes with its own.
        """
        wanted = request["interface"]
        if wanted is None or not wanted["hwAddr"]:
            raise TtrpcError(status.INVALID_ARGUMENT, "the interface has no hardware address")
        addresses = []
        for entry in wanted["IPAddresses"]:
            family, packed = _parse(entry["address"])
            addresses.append((family, packed, _prefix(entry["mask"], family)))
        name = await self._await_device(wanted["devicePath"], wanted["hwAddr"].lower())
        with Netlink() as netlink:
            link = _find(_links(netlink), name)
            attrs = b""
            if wanted["mtu"]:
                attrs += attribute(_IFLA_MTU, pack("=I", wanted["mtu"]))
            if link.mac != wanted["hwAddr"].lower():
                _change(netlink, link.index, flags=0, mask=_IFF_UP)  # few take it when they are up
                mac = _parse_mac(wanted["hwAddr"])
                _change(netlink, link.index, attribute(_IFLA_ADDRESS, mac))
            if wanted["name"] and wanted["name"] != link.name:
                _free_name(netlink, wanted["name"])
                _change(netlink, link.index, flags=0, mask=_IFF_UP)  # only then it can be renamed
                attrs += attribute(_IFLA_IFNAME, wanted["name"].encode() + b"\0")
            flags = _IFF_UP | (wanted["raw_flags"] & _IFF_NOARP)
            _change(netlink, link.index, attrs, flags, _IFF_UP | _IFF_NOARP)
            _replace_addresses(netlink, link, addresses)
            return _describe(netlink, link.index)

    async def _await_device(self, path: str, mac: str) -> str:
        """Wait for a network device and return its present name.

        Args:
            path: guest PCI path or CCW id of a device just plugged in; "" takes any place.
            mac: its hardware address.
        """

        def look() -> str:
            names = _names_at(path) if path else None
            with Netlink() as netlink:
                found = [link for link in _links(netlink) if names is None or link.name in names]
            for link in found:
                if link.mac == mac:
                    return link.name
            return found[0].name if names is not None and len(found) == 1 else ""

        where = f" at {path}" if path else ""
        text = f"Link not found: network device with address {mac}{where}"
        # The driver of a card that was there at boot may load behind the agent.
        seconds = 0.0 if path else _DRIVER_SECONDS
        return await block.wait_for(self._loop, look, block.rescan_pci, text, seconds)

    async def update_routes(self, request: Message) -> Mapping[str, Any]:
        """UpdateRoutes: each route is added or replaced, nothing is removed."""
        routes = (request["routes"] or {}).get("Routes", [])
        skip_ipv6 = _ipv6_disabled()
        with Netlink() as netlink:
            index = {link.name: link.index for link in _links(netlink)}
            for route in sorted(routes, key=lambda route: bool(route["gateway"])):
                family = _socket.AF_INET6 if route["family"] else _socket.AF_INET
                if family == _socket.AF_INET6 and skip_ipv6:
                    continue
                if route["device"] not in index:
                    text = f"Link not found: {route['device']!r} of route {route['dest']!r}"
                    raise TtrpcError(status.NOT_FOUND, text)
                try:
                    _replace_route(netlink, route, family, index[route["device"]])
                except OSError as error:
                    if error.errno != errno.EEXIST:
                        text = f"route to {route['dest'] or 'default'}: {error.strerror}"
                        raise TtrpcError(status.INTERNAL, text) from error
            return {"Routes": _routes(netlink)}

    async def list_interfaces(self, _request: Message) -> Mapping[str, Any]:
        """ListInterfaces."""
        with Netlink() as netlink:
            links = _links(netlink)
            return {"Interfaces": [_describe(netlink, link.index) for link in links]}

    async def list_routes(self, _request: Message) -> Mapping[str, Any]:
        """ListRoutes."""
        with Netlink() as netlink:
            return {"Routes": _routes(netlink)}

    async def add_neighbours(self, request: Message) -> None:
        """AddARPNeighbors."""
        with Netlink() as netlink:
            index = {link.name: link.index for link in _links(netlink)}
            for entry in (request["neighbors"] or {}).get("ARPNeighbors", []):
                address = entry["toIPAddress"]
                if address is None or entry["device"] not in index:
                    text = f"neighbour without a known device or address: {entry['device']!r}"
                    raise TtrpcError(status.INVALID_ARGUMENT, text)
                family, packed = _parse(address["address"])
                mac = _parse_mac(entry["lladdr"])
                head = pack(
                    "=BxxxiHBB", family, index[entry["device"]], entry["state"], entry["flags"], 0
                )
                attrs = attribute(_NDA_DST, packed) + attribute(_NDA_LLADDR, mac)
                netlink.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, head + attrs)


def _names_at(path: str) -> list[str]:
    """Names of the network devices on the device at a PCI path or CCW id."""
    folder = block.folder_at(path)
    names = []
    for child in os.listdir(folder) if folder else ():
        net = f"{folder}/net" if child == "net" else f"{folder}/{child}/net"
        if os.path.isdir(net):
            names += os.listdir(net)
    return names


def _find(links: Sequence[Link], name: str) -> Link:
    for link in links:
        if link.name == name:
            return link
    raise TtrpcError(status.NOT_FOUND, f"Link not found: {name} is gone")


def _free_name(netlink: Netlink, name: str) -> None:
    """Rename the device that has a name, if there is one."""
    for link in _links(netlink):
        if link.name == name:
            _change(netlink, link.index, flags=0, mask=_IFF_UP)
            other = attribute(_IFLA_IFNAME, f"old{link.index}".encode() + b"\0")
            _change(netlink, link.index, other)


def _addresses(netlink: Netlink, index: int) -> list[tuple[int, bytes, int]]:
    """Addresses of a device: family, bytes, prefix length."""
    found = []
    for body in netlink.dump(RTM_GETADDR, bytes(8)):
        family, prefix, _flags, _scope, owner = unpack_from("=BBBBI", body)
        attrs = attributes(body[8:])
        packed = attrs.get(_IFA_LOCAL) or attrs.get(_IFA_ADDRESS)
        if owner == index and family in _FAMILIES and packed:
            found.append((family, packed, prefix))
    return found


def _replace_addresses(
    netlink: Netlink, link: Link, wanted: Sequence[tuple[int, bytes, int]]
) -> None:
    """Give a device exactly these addresses; the IPv6 link-local one is the kernel's."""
    have = _addresses(netlink, link.index)
    for family, packed, prefix in have:
        if (family, packed, prefix) not in wanted and packed[:2] != _FE80:
            head = pack("=BBBBI", family, prefix, 0, 0, link.index)
            netlink.request(RTM_DELADDR, 0, head + attribute(_IFA_LOCAL, packed))
    for family, packed, prefix in wanted:
        if (family, packed, prefix) not in have and not (
            family == _socket.AF_INET6 and _ipv6_disabled()
        ):
            flags = 2 if family == _socket.AF_INET6 else 0  # IFA_F_NODAD: usable at once
            head = pack("=BBBBI", family, prefix, flags, 0, link.index)
            attrs = attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
            netlink.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, head + attrs)


def _describe(netlink: Netlink, index: int) -> dict[str, Any]:
    link = next(link for link in _links(netlink) if link.index == index)
    return {
        "device": link.name,
        "name": link.name,
        "IPAddresses": [
            {
                "family": int(family == _socket.AF_INET6),
                "address": _socket.inet_ntop(family, packed),
                "mask": str(prefix),
            }
            for family, packed, prefix in _addresses(netlink, index)
        ],
        "mtu": link.mtu,
        "hwAddr": link.mac,
        "type": link.kind,
        "raw_flags": link.flags & _IFF_NOARP,
    }


def _replace_route(netlink: Netlink, route: Message, family: int, index: int) -> None:
    prefix, attrs = 0, attribute(_RTA_OIF, pack("=I", index))
    if route["dest"] and not route["dest"].startswith(("default", "0.0.0.0/0", "::/0")):
        address, slash, length = route["dest"].partition("/")
        _family, packed = _parse(address)
        prefix = _prefix(length, family) if slash else len(packed) * 8
        attrs += attribute(_RTA_DST, packed)
    if route["gateway"]:
        attrs += attribute(_RTA_GATEWAY, _parse(route["gateway"])[1])
    if route["source"]:
        attrs += attribute(_RTA_PREFSRC, _parse(route["source"])[1])
    if route["mtu"]:
        attrs += attribute(_RTA_METRICS, attribute(_RTAX_MTU, pack("=I", route["mtu"])))
    if route["metric"]:
        attrs += attribute(_RTA_PRIORITY, pack("=I", route["metric"]))
    scope = route["scope"] & 0xFF
    if not scope and not route["gateway"] and family == _socket.AF_INET:
        scope = _SCOPE_LINK
    head = pack(
        "=BBBBBBBBI",
        family,
        prefix,
        0,
        0,
        _MAIN_TABLE,
        _PROTOCOL_STATIC,
        scope,
        _UNICAST,
        route["flags"],
    )
    netlink.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, head + attrs)


def _routes(netlink: Netlink) -> list[dict[str, Any]]:
    names = {link.index: link.name for link in _links(netlink)}
    found = []
    for body in netlink.dump(RTM_GETROUTE, bytes(12)):
        family, prefix, _source, _tos, table, _protocol, scope, kind, flags = unpack_from(
            "=BBBBBBBBI", body
        )
        attrs = attributes(body[12:])
        if _RTA_TABLE in attrs:
            table = unpack_from("=I", attrs[_RTA_TABLE])[0]
        usable = family in _FAMILIES and table == _MAIN_TABLE and kind == _UNICAST
        if not usable or flags & _RTM_F_CLONED or _RTA_OIF not in attrs:
            continue

        def text(key: int, attrs: dict[int, bytes] = attrs, family: int = family) -> str:
            return _socket.inet_ntop(family, attrs[key]) if key in attrs else ""

        metrics = attributes(attrs.get(_RTA_METRICS, b""))
        found.append(
            {
                "dest": f"{text(_RTA_DST)}/{prefix}" if _RTA_DST in attrs else "",
                "gateway": text(_RTA_GATEWAY),
                "device": names.get(unpack_from("=I", attrs[_RTA_OIF])[0], ""),
                "source": text(_RTA_PREFSRC),
                "scope": scope,
                "family": int(family == _socket.AF_INET6),
                "flags": flags & 0x1F,
                "mtu": unpack_from("=I", metrics.get(_RTAX_MTU, bytes(4)))[0],
                "metric": unpack_from("=I", attrs.get(_RTA_PRIORITY, bytes(4)))[0],
            }
        )
    return found
