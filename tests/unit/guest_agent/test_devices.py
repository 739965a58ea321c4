"""Device nodes of the guest for containers that may have them all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from guest_agent.devices import _rewrite_addresses, add_nodes_of_guest

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
