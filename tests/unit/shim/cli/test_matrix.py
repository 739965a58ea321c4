"""The capability matrix: what is found, what is off, and the reason by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim.cli import matrix
from shim.config.model import Config


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH but for what a test puts there."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def put(directory: Path, name: str, says: str, code: int = 0) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    program.chmod(0o755)


def lines_of(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line}


def test_nothing_there(programs: Path) -> None:
    vmms = matrix.find(Config())
    assert all(vmm.capabilities is None for vmm in vmms)
    text = matrix.as_text(vmms)
    assert "no program firecracker; install it or configure path" in text
    assert "block_hot" not in text


def test_versions_and_reasons(programs: Path) -> None:
    put(programs, "firecracker", "Firecracker v1.14.1")
    put(programs, "cloud-hypervisor", "cloud-hypervisor v46.0.0")
    text = matrix.as_text(matrix.find(Config()))
    lines = lines_of(text)
    assert lines["transport"].split() == ["transport", "mmio", "pci", "pci"]
    assert lines["block_hot"].split() == ["block_hot", "swap", "swap", "add_remove"]
    assert lines["mem_down"].split() == ["mem_down", "yes", "yes", "yes"]
    (number,) = {word for word in lines["block_resize"].split() if word.startswith("[")}
    assert f"{number} Cloud Hypervisor: Cloud Hypervisor 50 or later" in text
    assert "Firecracker: Firecracker 1.16 or later, started with PCI" in text
    assert "Firecracker: Firecracker can't add virtual CPUs" in text


@pytest.mark.parametrize(
    ("says", "code", "problem"),
    [
        ("Firecracker v1.11.0", 0, "1.12 or later"),
        ("hello", 0, "says"),
        ("Firecracker v1.16.0", 3, "exit code 3"),
    ],
)
def test_a_program_that_will_not_do(programs: Path, says: str, code: int, problem: str) -> None:
    put(programs, "firecracker", says, code)
    found = {vmm.name: vmm for vmm in matrix.find(Config())}
    assert found["Firecracker"].capabilities is None
    assert problem in found["Firecracker"].problem


def test_pci_is_its_own_column_and_needs_1_13(programs: Path) -> None:
    put(programs, "firecracker", "Firecracker v1.12.1")
    found = {vmm.name: vmm for vmm in matrix.find(Config())}
    assert found["Firecracker"].capabilities is not None
    assert "1.13 or later" in found["Firecracker with PCI"].problem


def test_json(programs: Path) -> None:
    put(programs, "cloud-hypervisor", "cloud-hypervisor v53.0")
    value = json.loads(json.dumps(matrix.as_json(matrix.find(Config()))))
    clh = next(vmm for vmm in value if vmm["name"] == "Cloud Hypervisor")
    assert clh["version"] == "Cloud Hypervisor 53.0"
    assert clh["capabilities"]["vfio_hot"] is True
    assert "9p" in clh["why_not"]["ninep"]
