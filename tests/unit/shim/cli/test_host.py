from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from shim.cli import host
from shim.cli.findings import Finding, Level


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_rights_of_root(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert only(host.rights(status)).level is Level.OK
    status.write_text("Name:\tx\nCapEff:\t00000000a80425fb\n")  # what a container has
    finding = only(host.rights(status))
    assert finding.level is Level.FAIL
    assert finding.text == "root without CAP_SYS_ADMIN and CAP_NET_ADMIN"


@pytest.mark.parametrize(
    ("there", "mode", "level"),
    [
        (["cgroup.controllers"], "v2", Level.OK),
        (["unified/cgroup.controllers", "memory/tasks"], "v1 hybrid", Level.OK),
        (["memory/tasks"], "v1", Level.OK),
        ([], "none", Level.FAIL),
    ],
)
def test_cgroups(tmp_path: Path, there: list[str], mode: str, level: Level) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert host.cgroup_mode(tmp_path) == mode
    assert only(host.cgroups(tmp_path)).level is level


def test_devices(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for finding in (only(host.loop_devices(missing)), only(host.tun(missing))):
        assert finding.level is Level.WARN
        assert finding.text == f"{missing}: No such file or directory"
        assert "modprobe" in finding.advice
    assert only(host.tun(Path("/dev/null"))).level is Level.OK


def test_state_directory() -> None:
    assert only(host.state_directory(Path("/run/katapy"))).level is Level.OK
    long = only(host.state_directory(Path("/run/" + "x" * 60)))
    assert long.level is Level.FAIL
    assert "too long" in long.text
    inside = only(host.state_directory(Path("/dev/null/state")))
    assert (inside.level, inside.text) == (Level.FAIL, "/dev/null can't be written")


def test_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9999999 kB\nMemAvailable:    1048576 kB\n")
    assert only(host.memory(1024, meminfo)).level is Level.OK
    finding = only(host.memory(1025, meminfo))
    assert finding.level is Level.WARN
    assert finding.text == "1024 MiB available, a VM may use 1025 MiB"


@pytest.mark.parametrize(
    ("version", "listening", "level"),
    [
        ("1.6.20~ds1", True, Level.OK),
        ("v2.1.9", True, Level.OK),
        ("1.7.24", False, Level.WARN),
        ("1.5.9", True, Level.FAIL),
    ],
)
def test_containerd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, listening: bool, level: Level
) -> None:
    program(tmp_path / "containerd", f"echo containerd import/path {version} 1234abc")
    program(tmp_path / host.SHIM, "true")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with socket.socket(socket.AF_UNIX) as listener:
        if listening:
            listener.bind(str(tmp_path / "sock"))
        found = {f.name: f for f in host.containerd(tmp_path / "sock")}
    assert found["containerd"].level is level
    assert version in found["containerd"].text
    assert found["shim"].level is Level.OK


def test_no_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {f.name: f.level for f in host.containerd(tmp_path / "sock")}
    assert found == {"containerd": Level.WARN, "shim": Level.WARN}


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
