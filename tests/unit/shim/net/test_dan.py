"""Files of directly attached networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim.errors import ConfigError, Unimplemented
from shim.net.dan import DirectDevice, DirectNetwork, load_direct_network
from shim.net.links import Address, Link, Neighbour, Route

DOCUMENT: dict[str, Any] = {
    "netns": "/run/netns/x",
    "devices": [
        {
            "name": "eth0",
            "guest_mac": "02:00:00:00:00:AA",
            "device": {"type": "host-tap", "tap_name": "dtap0", "queue_num": 2, "queue_size": 256},
            "network_info": {
                "interface": {"ip_addresses": ["192.0.2.2/24", "2001:db8::2/64"], "mtu": 1400},
                "routes": [
                    {"dest": "0.0.0.0/0", "gateway": "192.0.2.1"},
                    {"dest": "", "gateway": "2001:db8::1"},
                    {"dest": "198.51.100.7/24", "scope": 253, "source": "192.0.2.2"},
                ],
                "neighbors": [{"ip_address": "192.0.2.1/32", "hardware_addr": "02:00:00:00:00:01"}],
            },
        }
    ],
}


def load(folder: Path, document: Any) -> DirectNetwork | None:
    (folder / "pod.json").write_text(json.dumps(document))
    return load_direct_network(folder, "pod")


def test_none_without_a_file(tmp_path: Path) -> None:
    assert load_direct_network(tmp_path, "pod") is None
    assert load_direct_network(tmp_path / "missing", "pod") is None


def test_everything_in_it(tmp_path: Path) -> None:
    link = Link(
        index=1,
        name="eth0",
        kind="tuntap",
        mac="02:00:00:00:00:aa",
        mtu=1400,
        addresses=(Address("192.0.2.2", 24), Address("2001:db8::2", 64)),
        routes=(
            Route("", False, gateway="192.0.2.1"),
            Route("", True, gateway="2001:db8::1"),
            Route("198.51.100.0/24", False, scope=253, source="192.0.2.2"),
        ),
        neighbours=(Neighbour("192.0.2.1", "02:00:00:00:00:01", 0x80),),
    )
    device = DirectDevice(link, tap="dtap0", queues=2)
    assert load(tmp_path, DOCUMENT) == DirectNetwork("/run/netns/x", (device,))


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"devices": [{}]},
        {"devices": [{"name": "e", "guest_mac": "m", "device": {"type": "host-tap"}}]},
        {"devices": None},
    ],
)
def test_malformed_ones_are_named(tmp_path: Path, document: Any) -> None:
    with pytest.raises(ConfigError, match=r"pod\.json is no directly attached network"):
        load(tmp_path, document)
    (tmp_path / "pod.json").write_text("{")
    with pytest.raises(ConfigError, match=r"pod\.json"):
        load_direct_network(tmp_path, "pod")


def test_a_daemon(tmp_path: Path) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["devices"][0]["device"] = {"type": "vhost-user", "path": "/s", "queue_size": 512}
    network = load(tmp_path, document)
    assert network is not None
    (device,) = network.devices
    assert (device.tap, device.socket) == ("", Path("/s"))
    assert (device.queues, device.queue_size) == (1, 512)


@pytest.mark.parametrize("address", ["0000:03:10.1", "03:10.1"])
def test_a_function(tmp_path: Path, address: str) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["devices"][0]["device"] = {"type": "vfio", "pci_device_id": address}
    network = load(tmp_path, document)
    assert network is not None
    assert network.devices[0].address == "0000:03:10.1"
    document["devices"][0]["device"]["pci_device_id"] = "../3"
    with pytest.raises(ConfigError, match="no PCI address"):
        load(tmp_path, document)


def test_other_devices_are_refused(tmp_path: Path) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["devices"][0]["device"]["type"] = "vdpa"
    with pytest.raises(Unimplemented, match=r"pod\.json: .*vdpa"):
        load(tmp_path, document)
