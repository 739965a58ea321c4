"""What the scan finds in namespaces made with iproute2."""

from __future__ import annotations

import pytest

from shim.net.links import Address, Neighbour, Route, Scan
from shim.net.netlink import RouteSocket
from shim.net.scan import scan
from tests.support.pod_netns import POD_MAC, Netns, join_by_veth

pytestmark = pytest.mark.root


def look(pod: Netns) -> Scan:
    with RouteSocket(pod.path) as channel:
        return scan(channel)


def test_a_namespace_just_made_has_nothing(pod: Netns) -> None:
    assert look(pod).links == ()


def test_addresses_routes_and_neighbours(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world, mtu=1400)
    pod.ip("route", "add", "198.51.100.0/24", "dev", "eth0", "src", "192.0.2.2", "mtu", "1300")
    pod.ip("route", "add", "default", "via", "203.0.113.9", "dev", "eth0", "onlink", "metric", "50")
    pod.ip("-6", "route", "add", "2001:db8:7::/48", "via", "fe80::1", "dev", "eth0")
    pod.ip("route", "add", "blackhole", "198.51.101.0/24")
    pod.ip("route", "add", "198.51.102.0/24", "dev", "eth0", "table", "77")
    pod.ip("route", "add", "198.51.103.0/24", "nexthop", "via", "192.0.2.1", "nexthop",
           "via", "192.0.2.9")  # fmt: skip
    pod.ip("neigh", "add", "192.0.2.1", "lladdr", "02:00:00:00:00:fe", "dev", "eth0",
           "nud", "permanent")  # fmt: skip
    pod.ip("neigh", "add", "192.0.2.8", "lladdr", "02:00:00:00:00:08", "dev", "eth0",
           "nud", "reachable")  # fmt: skip
    (link,) = look(pod).links
    assert (link.name, link.kind, link.mac, link.mtu) == ("eth0", "veth", POD_MAC, 1400)
    assert (link.is_up, link.no_arp) == (True, False)
    assert set(link.addresses) == {Address("192.0.2.2", 24), Address("2001:db8::2", 64)}
    assert set(link.routes) == {
        Route("", False, gateway="192.0.2.1"),
        Route("", False, gateway="203.0.113.9", flags=4, metric=50),
        Route("198.51.100.0/24", False, source="192.0.2.2", scope=253, mtu=1300),
        Route("198.51.103.0/24", False, gateway="192.0.2.1"),
        Route("198.51.103.0/24", False, gateway="192.0.2.9"),
        Route("", True, gateway="2001:db8::1"),
        Route("2001:db8:7::/48", True, gateway="fe80::1"),
    }
    assert [(n.address, n.mac) for n in link.neighbours] == [("192.0.2.1", "02:00:00:00:00:fe")]
    assert isinstance(link.neighbours[0], Neighbour)


def test_what_no_card_can_stand_for_is_left_out_with_a_reason(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    pod.ip("link", "add", "idle", "type", "veth", "peer", "name", "other")
    pod.ip("link", "set", "other", "up")
    pod.ip("link", "add", "br0", "up", "type", "bridge")
    pod.ip("link", "set", "other", "master", "br0")
    pod.ip("tuntap", "add", "tun0", "mode", "tun")
    pod.ip("link", "set", "tun0", "up")
    pod.ip("tuntap", "add", "tap9_katapy", "mode", "tap")
    pod.ip("link", "set", "tap9_katapy", "up")
    found = look(pod)
    assert [link.name for link in found.links] == ["eth0", "br0"]
    reasons = {note.split(":")[0]: note for note in found.notes}
    assert "is down" in reasons["link idle"]
    assert "bridge or bond" in reasons["link other"]
    assert "no Ethernet" in reasons["link tun0"]
    assert len(found.present) == 7


@pytest.mark.parametrize("count", [300])
def test_long_lists_come_whole(pod: Netns, world: Netns, count: int) -> None:
    join_by_veth(pod, world)
    lines = "".join(f"route add 10.{n // 256}.{n % 256}.0/24 via 192.0.2.1\n" for n in range(count))
    pod.run("sh", "-c", f"printf '{lines}' | ip -batch -")
    (link,) = look(pod).links
    assert len([route for route in link.routes if route.dest.startswith("10.")]) == count
