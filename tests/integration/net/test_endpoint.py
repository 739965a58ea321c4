"""Links of every kind connected to a card: frames pass both ways, and nothing is left."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shim.errors import FailedPrecondition, Internal
from shim.net import endpoint
from shim.net.endpoint import Wiring
from shim.net.links import Link
from shim.net.netlink import RouteSocket, in_netns
from shim.net.scan import scan
from tests.support.pod_netns import POD_MAC, Netns, call, join_by_veth
from vmm.spec import NetDevice

pytestmark = pytest.mark.root

WORLD_MAC = "02:00:00:00:00:01"
ETHERTYPE = b"\x88\xb5"  # for experiments: nobody's stack answers
HEADER = 10  # of virtio, before each frame on a tap with offload headers


def has_kind(kind: str) -> bool:
    """Whether the kernel makes links of a kind at all."""
    name = f"ktkind{os.getpid()}"
    try:
        call("ip", "netns", "add", name)
        call("ip", "-n", name, "link", "add", "low", "type", "veth", "peer", "name", "peer")
        words = ["type", kind] if kind == "netkit" else ["link", "low", "type", kind]
        call("ip", "-n", name, "link", "add", "probe", *words)
    except AssertionError:
        return False
    finally:
        call("ip", "netns", "del", name)
    return True


def make(kind: str, pod: Netns, world: Netns) -> str:
    """Give the pod a link ``eth0`` of a kind; returns the world's end, a veth."""
    world.ip("link", "add", "w0", "address", WORLD_MAC, "type", "veth", "peer", "name", "low")
    world.ip("link", "set", "w0", "up")
    world.ip("link", "set", "low", "up")
    if kind == "veth":
        world.ip("link", "set", "low", "name", "eth0", "address", POD_MAC, "netns", pod.name)
    else:
        words = {
            "vlan": ["type", "vlan", "id", "7"],
            "macvlan": ["type", "macvlan", "mode", "bridge"],
            "ipvlan": ["type", "ipvlan", "mode", "l2"],
        }[kind]
        mac = [] if kind == "ipvlan" else ["address", POD_MAC]
        world.ip("link", "add", "eth0", "link", "low", *mac, "netns", pod.name, *words)
    if kind == "vlan":
        world.ip("link", "add", "w7", "link", "w0", "type", "vlan", "id", "7")
        world.ip("link", "set", "w7", "up")
    pod.ip("link", "set", "eth0", "up")
    return "w7" if kind == "vlan" else "w0"


@contextmanager
def connected(pod: Netns, wiring: Wiring) -> Iterator[tuple[Link, NetDevice]]:
    def build() -> tuple[Link, NetDevice]:
        with RouteSocket() as channel:
            (link,) = scan(channel).links
            return link, endpoint.connect(channel, link, wiring)

    link, device = in_netns(pod.path, build, 10.0)
    try:
        yield link, device
    finally:
        for fd in device.fds:
            os.close(fd)
        for part in reversed(endpoint.parts(link, wiring)):
            in_netns(pod.path, lambda part=part: endpoint.remove(part))  # type: ignore[misc]
            in_netns(pod.path, lambda part=part: endpoint.remove(part))  # type: ignore[misc]


def packet_socket(netns: Netns, link: str) -> socket.socket:
    def build() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        made.bind((link, 0x88B5))
        return made

    return in_netns(netns.path, build)


def frame(target: str, source: str, text: bytes) -> bytes:
    return bytes.fromhex(f"{target}{source}".replace(":", "")) + ETHERTYPE + text.ljust(46, b"\0")


def read_from(fd: int, wanted: Callable[[bytes], bool]) -> bytes:
    """Return the first frame like this; the kernel's own frames pass unseen."""
    while True:
        ready, _, _ = select.select([fd], [], [], 5)
        assert ready, "no frame came within 5 s"
        data = os.read(fd, 65536)
        if wanted(data):
            return data


KINDS = ["veth", "vlan", "macvlan", "ipvlan"]


@pytest.mark.parametrize(
    ("kind", "model"), [*((kind, "tcfilter") for kind in KINDS), ("veth", "macvtap")]
)
def test_frames_pass_both_ways(kind: str, model: str, pod: Netns, world: Netns) -> None:
    if not has_kind(kind):
        pytest.skip(f"this kernel has no {kind}")
    there = make(kind, pod, world)
    before = (pod.links(), pod.run("tc", "qdisc"))
    wiring = Wiring(model=model)  # type: ignore[arg-type]
    with connected(pod, wiring) as (link, device), packet_socket(world, there) as remote:
        assert (device.mac, device.mtu) == (link.mac, link.mtu)
        (tap,) = device.fds
        remote.send(frame(link.mac, WORLD_MAC, b"to the guest"))
        got = read_from(tap, lambda data: b"to the guest" in data)
        assert got[HEADER:] == frame(link.mac, WORLD_MAC, b"to the guest")
        os.write(tap, bytes(HEADER) + frame(WORLD_MAC, link.mac, b"from the guest"))
        got = read_from(remote.fileno(), lambda data: b"from the guest" in data)
        assert got == frame(WORLD_MAC, link.mac, b"from the guest")
    assert (pod.links(), pod.run("tc", "qdisc")) == before


def test_a_macvlan_takes_no_macvtap(pod: Netns, world: Netns) -> None:
    make("macvlan", pod, world)
    with (
        pytest.raises(Internal, match=r"a macvlan takes none"),
        connected(pod, Wiring(model="macvtap")),
    ):
        pass
    assert pod.links() == {"lo", "eth0"}


def test_the_pods_addresses_do_not_answer_for_the_guest(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    ping = ["busybox", "ping", "-c", "1", "-W", "1", "192.0.2.2"]
    world.run(*ping)
    with connected(pod, Wiring()), pytest.raises(AssertionError):
        world.run(*ping)
    world.run(*ping)


def test_several_queues_and_a_large_mtu(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world, mtu=9000)
    with connected(pod, Wiring(queues=3)) as (link, device):
        assert len(device.fds) == 3
        assert device.mtu == 9000
        (row,) = pod.show("-d", "link", "show", "dev", endpoint.tap_name(link))
        assert row["mtu"] == 9000
        assert row["linkinfo"]["info_data"]["multi_queue"] is True


def test_a_tap_that_stays_for_a_vmm_that_opens_it_by_name(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    with connected(pod, Wiring(open_taps=False)) as (link, device):
        assert (device.fds, device.tap) == ((), endpoint.tap_name(link))
        assert device.tap in pod.links()
    assert pod.links() == {"lo", "eth0"}


def test_rates_are_limited_by_the_hosts_queues(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    before = pod.run("tc", "qdisc")
    with connected(pod, Wiring(rx_rate=8_000_000, tx_rate=50_000_000_000)) as (link, _):
        shown = pod.run("tc", "qdisc", "show")
        assert f"tbf 1: dev {endpoint.tap_name(link)} root refcnt" in shown
        assert "rate 8Mbit" in shown
        assert "rate 50Gbit" in shown
    assert pod.run("tc", "qdisc") == before


def test_a_link_in_use_is_refused_and_left_as_it_is(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    pod.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    before = (pod.links(), pod.run("tc", "qdisc"))
    with (
        pytest.raises(FailedPrecondition, match="ingress qdisc already"),
        connected(pod, Wiring()),
    ):
        pass
    assert (pod.links(), pod.run("tc", "qdisc")) == before


def test_descriptors_are_closed_when_it_fails(pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    pod.run("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "tbf",
            "rate", "1mbit", "burst", "64k", "latency", "50ms")  # fmt: skip
    before = (pod.links(), pod.run("tc", "qdisc"), len(os.listdir("/proc/self/fd")))
    with pytest.raises(Exception, match="no other root qdisc"), connected(pod, Wiring(tx_rate=9)):
        pass
    assert before == (pod.links(), pod.run("tc", "qdisc"), len(os.listdir("/proc/self/fd")))
