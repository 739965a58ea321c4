from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim.cli.check import as_text, check
from shim.cli.findings import Finding, Level
from shim.cli.main import main

EVERYTHING = {
    "accelerator",
    "QEMU",
    "root",
    "shared directories",
    "agent channel",
    "memory",
    "cgroups",
    "state directory",
    "loop devices",
    "tun",
    "containerd",
    "shim",
    "configuration",
}


def test_json_lists_everything_and_the_status_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[hypervisor.qemu]\nenable_template = true\n[katapy]\naccelerator = "tcg"\n')
    status = main(["check", "--json", "--config", str(file)])
    said = json.loads(capsys.readouterr().out)
    levels = [finding["level"] for finding in said["findings"]]
    assert said["ready"] is ("FAIL" not in levels)
    assert status == (0 if said["ready"] else 1)
    assert {finding["name"] for finding in said["findings"]} >= EVERYTHING
    assert all(f["advice"] for f in said["findings"] if f["level"] != "OK")
    configuration = [f for f in said["findings"] if f["name"] == "configuration"]
    assert configuration[0]["text"] == str(file)
    assert configuration[1]["text"] == f"{file}: [hypervisor.qemu] enable_template has no effect"


def test_a_wrong_configuration_fails_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[katapy]\nchannel = 'carrier pigeon'\n")
    found = check(file)
    assert found[0].level is Level.FAIL
    assert "carrier pigeon" in found[0].text
    assert {finding.name for finding in found} >= EVERYTHING


def test_text() -> None:
    findings = [
        Finding("first", Level.OK, "is fine"),
        Finding("the second", Level.FAIL, "is missing", "get one"),
    ]
    assert as_text(findings, False).splitlines() == [
        "OK    first       is fine",
        "FAIL  the second  is missing",
        "                  -> get one",
        "",
        "This host can't run katapy pods yet.",
    ]
