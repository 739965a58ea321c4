"""How links are connected, by configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shim.config.hypervisors import Firecracker, Qemu
from shim.config.model import Config, Katapy, Runtime
from shim.errors import ConfigError, Unimplemented
from shim.net import wiring
from shim.net.endpoint import Part, Wiring, parts
from shim.net.links import Link
from shim.net.wiring import allow_host_network, plan_wiring

LINK = Link(3, "eth0", "veth", "02:00:00:00:00:03", 1500)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "VHOST_NET", "/nowhere")
    assert plan_wiring(Config()) == Wiring()


def test_vhost_where_the_host_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "VHOST_NET", "/dev/null")
    assert plan_wiring(Config()).vhost
    assert not plan_wiring(Config(hypervisor=Qemu(disable_vhost_net=True))).vhost
    assert not plan_wiring(Config(hypervisor=Firecracker())).vhost


def test_everything_of_qemus() -> None:
    vm = Qemu(network_queues=4, rx_rate_limiter_max_rate=1000, tx_rate_limiter_max_rate=2000)
    planned = plan_wiring(Config(hypervisor=vm))
    assert (planned.queues, planned.rx_rate, planned.tx_rate) == (4, 1000, 2000)
    assert planned.open_taps


def test_firecracker_opens_taps_by_name() -> None:
    assert not plan_wiring(Config(hypervisor=Firecracker())).open_taps


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Config(runtime=Runtime(disable_new_netns=True)), "internetworking_model = 'none'"),
        (
            Config(
                hypervisor=Qemu(rx_rate_limiter_max_rate=1),
                runtime=Runtime(internetworking_model="macvtap"),
            ),
            "rx_rate_limiter_max_rate",
        ),
    ],
)
def test_settings_that_exclude_each_other(config: Config, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_wiring(config)


def test_the_hosts_network() -> None:
    with pytest.raises(Unimplemented, match="host_network = 'none'"):
        allow_host_network(Config())
    assert "without one" in allow_host_network(Config(katapy=Katapy(host_network="none")))
    assert "slirp4netns" in allow_host_network(Config(katapy=Katapy(host_network="proxy")))


def test_what_is_made_is_known_before() -> None:
    tap = Part("netdev", {"name": "tap3_katapy"})
    ingress = Part("qdisc", {"link": "eth0", "parent": "ingress"})
    root = Part("qdisc", {"link": "eth0", "parent": "root"})
    assert parts(LINK, Wiring()) == [tap, ingress]
    assert parts(LINK, replace(Wiring(), model="macvtap")) == [tap]
    assert parts(LINK, replace(Wiring(), tx_rate=1, rx_rate=1)) == [tap, ingress, root]
