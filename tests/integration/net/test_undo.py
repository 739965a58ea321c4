"""What a killed shim left in a pod's namespace, undone from its ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cleanup import sweeper
from shim.cleanup.ledger import Ledger
from shim.net import endpoint
from shim.net.endpoint import Wiring
from shim.net.links import Link
from shim.net.netlink import RouteSocket, in_netns, netns_id
from shim.net.scan import scan
from tests.support.pod_netns import Netns, call, join_by_veth

pytestmark = pytest.mark.root

WIRING = Wiring(tx_rate=8_000_000, rx_rate=8_000_000, open_taps=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(str(tmp_path), "default", "pod") as ledger:
        yield ledger


def connected(pod: Netns) -> Link:
    def build() -> Link:
        with RouteSocket() as channel:
            (link,) = scan(channel).links
            endpoint.connect(channel, link, WIRING)
            return link

    return in_netns(pod.path, build)


def record(ledger: Ledger, pod: Netns, link: Link) -> None:
    fd = os.open(pod.path, os.O_RDONLY)
    where = {"netns": pod.path, "netns_id": netns_id(fd)}
    os.close(fd)
    for part in endpoint.parts(link, WIRING):
        ledger.add(part.kind, **part.fields, **where)


def test_everything_is_undone_and_once_more_is_no_error(
    pod: Netns, world: Netns, ledger: Ledger
) -> None:
    join_by_veth(pod, world)
    before = (pod.links(), pod.run("tc", "qdisc"))
    link = connected(pod)
    assert (pod.links(), pod.run("tc", "qdisc")) != before
    for _ in range(2):
        record(ledger, pod, link)
        problems: list[str] = []
        assert sweeper.sweep(ledger, problems.append) == []
        assert problems == []
        assert (pod.links(), pod.run("tc", "qdisc")) == before


def test_another_namespace_at_the_same_path_is_left_alone(
    pod: Netns, world: Netns, ledger: Ledger
) -> None:
    join_by_veth(pod, world)
    record(ledger, pod, connected(pod))
    # By name, as the kernel empties a deleted namespace some time after the call.
    pod.ip("link", "del", "eth0")
    call("ip", "netns", "del", pod.name)
    call("ip", "netns", "add", pod.name)
    join_by_veth(pod, world)
    connected(pod)
    there = (pod.links(), pod.run("tc", "qdisc"))
    assert sweeper.sweep(ledger, print) == []
    assert (pod.links(), pod.run("tc", "qdisc")) == there


def test_a_namespace_that_is_gone_is_a_success(pod: Netns, world: Netns, ledger: Ledger) -> None:
    join_by_veth(pod, world)
    record(ledger, pod, connected(pod))
    call("ip", "netns", "del", pod.name)
    Path(pod.path).touch()  # the file without its namespace, as an unmount leaves it
    try:
        assert sweeper.sweep(ledger, print) == []
        os.unlink(pod.path)
        record_path = {"netns": pod.path, "netns_id": "1:1"}
        ledger.add("netdev", name="tap2_katapy", **record_path)
        assert sweeper.sweep(ledger, print) == []
    finally:
        call("ip", "netns", "add", pod.name)  # for the fixture to delete
