"""Decoding the kernel's messages: against an encoder of others, and against anything."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from shim.net import rtnl
from shim.net.links import Address, Neighbour, Route
from shim.net.netlink import attribute, attribute_list, attributes

HEADER = 16


def encoded(kind: type[Any], attrs: list[tuple[str, Any]], **fields: Any) -> bytes:
    """A message's body as pyroute2 writes it."""
    message = kind()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data[HEADER:])


def test_link() -> None:
    body = encoded(
        ifinfmsg,
        [
            ("IFLA_IFNAME", "eth0"),
            ("IFLA_MTU", 1450),
            ("IFLA_ADDRESS", "02:00:00:00:00:aa"),
            ("IFLA_MASTER", 9),
            ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "macvlan")]}),
        ],
        index=4,
        ifi_type=1,
        flags=0x81,
    )
    assert rtnl.parse_link(body) == rtnl.RawLink(
        4, 1, 0x81, "eth0", "02:00:00:00:00:aa", 1450, "macvlan", 9
    )


def test_address_prefers_the_local_one_of_a_pair() -> None:
    body = encoded(
        ifaddrmsg,
        [("IFA_ADDRESS", "192.0.2.1"), ("IFA_LOCAL", "192.0.2.2")],
        family=2,
        prefixlen=32,
        index=3,
    )
    assert rtnl.parse_address(body) == (3, Address("192.0.2.2", 32))


def test_route() -> None:
    body = encoded(
        rtmsg,
        [
            ("RTA_DST", "2001:db8::"),
            ("RTA_GATEWAY", "fe80::1"),
            ("RTA_OIF", 5),
            ("RTA_PRIORITY", 1024),
            ("RTA_TABLE", 254),
        ],
        family=10,
        dst_len=32,
        table=254,
        proto=4,
        type=1,
        flags=4,
    )
    (raw,) = rtnl.parse_route(body)
    assert (raw.index, raw.table, raw.kind, raw.protocol) == (5, 254, 1, 4)
    assert raw.route == Route("2001:db8::/32", True, gateway="fe80::1", flags=4)


def test_neighbour() -> None:
    body = encoded(
        ndmsg,
        [("NDA_DST", "192.0.2.9"), ("NDA_LLADDR", "02:00:00:00:00:09")],
        family=2,
        ifindex=3,
        state=0x80,
    )
    assert rtnl.parse_neighbour(body) == (
        3,
        Neighbour("192.0.2.9", "02:00:00:00:00:09", 0x80, 0),
    )


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in pairs)
    assert attribute_list(data) == pairs
    assert attributes(data) == dict(pairs)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_in_a_clean_error(data: bytes) -> None:
    attribute_list(data)
    for parse in (rtnl.parse_link, rtnl.parse_address, rtnl.parse_route, rtnl.parse_neighbour):
        # The fixed part of a message is the kernel's to fill, an address's length is too.
        with contextlib.suppress(struct.error, ValueError):
            parse(data)
