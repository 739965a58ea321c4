"""Device nodes of the guest for containers that may have them all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from guest_agent import vfio
from guest_agent.devices import _patch, _rewrite_addresses, add_nodes_of_guest
from guest_agent.loop import Loop
from shim.ttrpc.status import TtrpcError

pytestmark = pytest.mark.root


def test_every_node_but_terminals_and_ports(tmp_path: Path) -> None:
    for name in ("net", "pts"):
        (tmp_path / name).mkdir()
    for name, kind, number in (
        ("vda", stat.S_IFBLK, (254, 0)),
        ("net/tun", stat.S_IFCHR, (10, 200)),
        ("null", stat.S_IFCHR, (1, 3)),
        ("pts/0", stat.S_IFCHR, (136, 0)),
        ("ttyS0", stat.S_IFCHR, (4, 64)),
        ("vport0p1", stat.S_IFCHR, (240, 1)),
    ):
        try:
            os.mknod(tmp_path / name, kind | 0o640, os.makedev(*number))
        except PermissionError:
            pytest.skip("no device nodes can be made here")
    (tmp_path / "fd").symlink_to("/proc/self/fd")
    (tmp_path / "log").touch()
    spec: dict[str, Any] = {"linux": {"devices": [{"path": "/dev/null", "major": 9}]}}
    add_nodes_of_guest(spec, str(tmp_path))
    devices = {device["path"]: device for device in spec["linux"]["devices"]}
    assert devices.keys() == {"/dev/null", "/dev/vda", "/dev/net/tun"}
    assert devices["/dev/null"]["major"] == 9
    assert devices["/dev/vda"] == {
        "path": "/dev/vda", "type": "b", "major": 254, "minor": 0,
        "fileMode": 0o640, "uid": 0, "gid": 0,
    }  # fmt: skip


def test_addresses_of_pci_devices_are_the_guest_s() -> None:
    spec: dict[str, Any] = {
        "process": {"env": ["PCIDEVICE_NIC=0000:01:00.0,0000:09:00.0", "HOST=0000:01:00.0"]}
    }
    _rewrite_addresses(spec, {"0000:01:00.0": "0000:02:00.0"})
    assert spec["process"]["env"] == [
        "PCIDEVICE_NIC=0000:02:00.0,0000:09:00.0",
        "HOST=0000:01:00.0",
    ]
    _rewrite_addresses({}, {"0000:01:00.0": "0000:02:00.0"})


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    """A PCI bus with a card behind an IOMMU, one without, and a kernel that binds at once."""
    for name, group in (("0000:01:00.0", "7"), ("0000:02:00.0", "")):
        folder = tmp_path / "devices" / name
        folder.mkdir(parents=True)
        (folder / "driver").symlink_to("../../drivers/virtio-pci")
        if group:
            (tmp_path / "groups" / group).mkdir(parents=True)
            (folder / "iommu_group").symlink_to(f"../../groups/{group}")
    (tmp_path / "drivers/virtio-pci").mkdir(parents=True)
    return tmp_path


def run(main: Callable[[Loop], Coroutine[Any, Any, Any]]) -> Any:
    loop = Loop()
    try:
        return loop.run(main(loop))
    finally:
        loop.close()


def test_a_device_for_a_container_must_be_taken_by_vfio(bus: Path) -> None:
    with pytest.raises(TtrpcError, match="enable_iommu"):
        run(lambda loop: vfio.hand_over(loop, "0000:02:00.0", str(bus)))
    # Nothing binds anything in these directories.
    with pytest.raises(TtrpcError, match="not taken by vfio-pci, but by virtio-pci"):
        run(lambda loop: vfio.hand_over(loop, "0000:01:00.0", str(bus)))
    assert (bus / "devices/0000:01:00.0/driver_override").read_text() == "vfio-pci"
    assert (bus / "drivers/virtio-pci/unbind").read_text() == "0000:01:00.0"
    assert (bus / "drivers_probe").read_text() == "0000:01:00.0"


def test_a_group_takes_the_place_of_the_host_s() -> None:
    rule = {"allow": True, "type": "c", "major": 0, "minor": 1, "access": "rw"}
    every = {"allow": True, "access": "m"}
    spec: dict[str, Any] = {
        "linux": {
            "devices": [{"path": "/dev/vfio/4", "type": "c", "major": 0, "minor": 1, "uid": 5}],
            "resources": {"devices": [rule, {**every, "type": "c"}]},
        }
    }
    _patch(spec, "/dev/vfio/4", "c", os.makedev(240, 3), "/dev/vfio/9")
    _patch(spec, "", "c", os.makedev(240, 4), "/dev/vfio/10")
    first, second = spec["linux"]["devices"]
    assert first == {"path": "/dev/vfio/9", "type": "c", "major": 240, "minor": 3, "uid": 5}
    assert second == {"path": "/dev/vfio/10", "type": "c", "major": 240, "minor": 4}
    rules = spec["linux"]["resources"]["devices"]
    found = [(rule.get("minor"), rule["access"]) for rule in rules]
    assert found == [(3, "rw"), (None, "m"), (4, "rwm")]
