"""The way from what is connected to what there is, and what the guest is told."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from protos.kata import types_pb2
from shim.net import guest
from shim.net.changes import Changes, plan_changes
from shim.net.links import Address, Link, Neighbour, Route, Scan

ETH0 = Link(
    index=2,
    name="eth0",
    kind="veth",
    mac="02:00:00:00:00:02",
    mtu=1500,
    addresses=(Address("192.0.2.2", 24), Address("2001:db8::2", 64)),
    routes=(
        Route("", False, gateway="192.0.2.1"),
        Route("198.51.100.0/24", False, scope=253, mtu=1300, source="192.0.2.2"),
    ),
    neighbours=(Neighbour("192.0.2.9", "02:00:00:00:00:09", 0x80),),
)
NET1 = replace(ETH0, index=7, name="net1", mac="02:00:00:00:00:07", no_arp=True)


def found(*links: Link) -> Scan:
    return Scan(links, frozenset(link.index for link in links))


def test_nothing_has_changed() -> None:
    assert plan_changes({2: ETH0}, found(ETH0)) == Changes()


def test_a_link_that_came_and_one_that_went() -> None:
    assert plan_changes({2: ETH0}, found(NET1)) == Changes(gone=(2,), new=(NET1,))


def test_a_link_that_is_only_down_keeps_its_card() -> None:
    assert plan_changes({2: ETH0}, Scan((), frozenset({2}))) == Changes()


def test_new_routes_and_neighbours_alone_are_told() -> None:
    route = Route("203.0.113.0/24", False, gateway="192.0.2.1")
    entry = Neighbour("192.0.2.8", "02:00:00:00:00:08", 0x80)
    now = replace(ETH0, routes=(*ETH0.routes, route), neighbours=(*ETH0.neighbours, entry))
    changes = plan_changes({2: ETH0}, found(now))
    assert changes.changed == ()
    assert changes.routes == (replace(now, routes=(route,)),)
    assert changes.neighbours == (replace(now, neighbours=(entry,)),)


def test_a_changed_address_brings_all_routes_again() -> None:
    now = replace(ETH0, addresses=(Address("192.0.2.3", 24),))
    changes = plan_changes({2: ETH0}, found(now))
    assert changes.changed == (now,)
    assert changes.routes == (now,)
    assert changes.neighbours == (now,)


_LINKS = st.builds(
    Link,
    index=st.integers(2, 5),
    name=st.sampled_from(["eth0", "net1"]),
    kind=st.just("veth"),
    mac=st.just("02:00:00:00:00:02"),
    mtu=st.sampled_from([1400, 1500]),
    addresses=st.lists(st.builds(Address, st.just("192.0.2.2"), st.integers(23, 24))).map(tuple),
    routes=st.lists(st.sampled_from(ETH0.routes), unique=True).map(tuple),
)
_SETS = st.lists(_LINKS, unique_by=lambda link: link.index)


@given(_SETS, _SETS)
def test_doing_the_changes_leaves_nothing_to_do(old: list[Link], new: list[Link]) -> None:
    connected = {link.index: link for link in old}
    now = found(*new)
    changes = plan_changes(connected, now)
    for index in changes.gone:
        del connected[index]
    for link in changes.new:
        connected[link.index] = link
    for link in (*changes.changed, *(n for n in now.links if n.index in connected)):
        connected[link.index] = link
    assert plan_changes(connected, now) == Changes()


def test_the_guest_is_told_of_a_link() -> None:
    told = guest.interface(NET1, path="10/00")
    assert (told.device, told.name, told.hwAddr) == ("net1", "net1", NET1.mac)
    assert (told.mtu, told.devicePath, told.type, told.raw_flags) == (1500, "10/00", "veth", 0x80)
    assert [(a.family, a.address, a.mask) for a in told.IPAddresses] == [
        (types_pb2.IPFamily.v4, "192.0.2.2", "24"),
        (types_pb2.IPFamily.v6, "2001:db8::2", "64"),
    ]


def test_routes_without_a_gateway_come_first() -> None:
    on_link, default = guest.routes([ETH0])
    assert (on_link.dest, on_link.scope, on_link.mtu) == ("198.51.100.0/24", 253, 1300)
    assert (on_link.source, on_link.device) == ("192.0.2.2", "eth0")
    assert (default.dest, default.gateway) == ("", "192.0.2.1")


def test_the_better_of_two_routes_comes_last() -> None:
    worse = Route("", False, gateway="192.0.2.9", metric=500)
    told = guest.routes([replace(ETH0, routes=(ETH0.routes[0], worse))])
    assert [(route.gateway, route.metric) for route in told] == [
        ("192.0.2.9", 500),
        ("192.0.2.1", 0),
    ]


def test_neighbours() -> None:
    (entry,) = guest.neighbours([ETH0])
    assert (entry.device, entry.lladdr, entry.state) == ("eth0", "02:00:00:00:00:09", 0x80)
    assert entry.toIPAddress.address == "192.0.2.9"
