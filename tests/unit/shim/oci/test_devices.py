"""Disks that a spec asks for, and what the container is told of them."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

from shim.oci.devices import HostDisk, device_rules, guest_devices, host_disks

DISK = {"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16, "fileMode": 0o600, "gid": 6}
NULL = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
EVERYTHING = {"allow": True, "access": "rwm"}


def spec(*found: dict[str, Any], rules: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"linux": {"devices": list(found), "resources": {"devices": list(rules)}}}


def rule(access: str, minor: int = 16) -> dict[str, Any]:
    return {"allow": True, "type": "b", "major": 8, "minor": minor, "access": access}


def test_disks_are_found_with_their_access() -> None:
    assert host_disks({}) == []
    assert host_disks(spec(NULL, DISK)) == [HostDisk("/dev/xvda", 8, 16, True)]
    assert not host_disks(spec(DISK, rules=(rule("r"),)))[0].writable
    assert host_disks(spec(DISK, rules=(rule("rwm"), rule("r", 17))))[0].writable


def test_a_privileged_container_gets_volumes_but_not_the_hosts_disks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Info:
        st_mode, st_rdev = stat.S_IFBLK, os.makedev(8, 0)

    def look(path: str) -> Info:
        if path == "/dev/sda":
            return Info()
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", look)
    own = {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}
    privileged = [disk.path for disk in host_disks(spec(own, DISK, rules=(EVERYTHING,)))]
    asked_for = [disk.path for disk in host_disks(spec(own, DISK))]
    monkeypatch.undo()
    assert privileged == ["/dev/xvda"]
    assert asked_for == ["/dev/sda", "/dev/xvda"]


def test_stand_in_numbers_and_rules_of_attached_disks() -> None:
    attached = {"/dev/xvda": (0, 1), "/dev/bound": (0, 2)}
    nodes = guest_devices([NULL, DISK], attached)
    assert nodes == [
        NULL,
        {**DISK, "major": 0, "minor": 1},
        {"path": "/dev/bound", "type": "b", "major": 0, "minor": 2, "fileMode": 0o660},
    ]
    own = device_rules([rule("r")], nodes, host_devices=[NULL, DISK])[-3:]
    accesses = {(r["major"], r["minor"]): r["access"] for r in own}
    assert accesses == {(1, 3): "rwm", (0, 1): "r", (0, 2): "rwm"}
