"""A pod's network as containerd's clients give it: links in a network namespace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ctr import Ctr
from tests.support.netns import Netns, join_by_veth, new_netns
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.fixture
def pod(token: str) -> Iterator[Netns]:
    """The pod's network namespace; its links must be as they were in the end."""
    with new_netns(f"{token}-pod") as netns:
        yield netns


@pytest.fixture
def world(token: str) -> Iterator[Netns]:
    """What the pod talks to."""
    with new_netns(f"{token}-world") as netns:
        yield netns


def in_pod(netns: Netns) -> list[str]:
    return ["--with-ns", f"network:{netns.path}"]


@pytest.mark.core
def test_ping_of_either_family_both_ways(ctr: Ctr, pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world, mtu=1400)
    name = ctr.start("sleep", "1000", options=in_pod(pod))
    for target in ("192.0.2.1", "2001:db8::1"):
        assert ctr.exec(name, "ping", "-c", "2", "-W", "5", target).code == 0
    shown = ctr.exec(name, "ip", "addr", "show", "dev", "eth0").text
    for wanted in ("mtu 1400", "02:00:00:00:02:02", "192.0.2.2/24", "2001:db8::2/64"):
        assert wanted in shown
    assert "default via 192.0.2.1" in ctr.exec(name, "ip", "route").text
    assert "default via 2001:db8::1" in ctr.exec(name, "ip", "-6", "route").text
    for target in ("192.0.2.2", "2001:db8::2"):
        world.run("busybox", "ping", "-c", "2", "-W", "5", target)
    ctr.remove_all()
    assert pod.links() == {"lo", "eth0"}
    assert pod.qdiscs() == []


@pytest.mark.core
def test_links_that_come_and_go_while_it_runs(ctr: Ctr, pod: Netns, world: Netns) -> None:
    name = ctr.start("sleep", "1000", options=in_pod(pod))
    join_by_veth(pod, world)
    eventually(
        lambda: "192.0.2.2" in ctr.exec(name, "ip", "addr").text, "eth0 in the guest", timeout=15
    )
    assert ctr.exec(name, "ping", "-c", "2", "-W", "5", "192.0.2.1").code == 0
    pod.ip("addr", "add", "192.0.2.77/24", "dev", "eth0")
    pod.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.1")
    eventually(
        lambda: "192.0.2.77" in ctr.exec(name, "ip", "addr").text, "the new address", timeout=15
    )
    eventually(
        lambda: "198.51.100.0" in ctr.exec(name, "ip", "route").text, "the new route", timeout=15
    )
    pod.ip("link", "del", "eth0")
    eventually(
        lambda: "eth0" not in ctr.exec(name, "ip", "addr").text, "eth0 out of the guest", timeout=15
    )
    assert pod.links() == {"lo"}
