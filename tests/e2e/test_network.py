"""A pod's network as containerd's clients give it: links in a network namespace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ctr import Ctr
from tests.support.netns import Netns, join_by_veth, new_netns

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
