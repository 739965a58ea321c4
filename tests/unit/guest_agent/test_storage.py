from __future__ import annotations

import pytest

from guest_agent import libc
from guest_agent.block import pci_address_steps
from guest_agent.storage import parse_options
from shim.ttrpc.status import TtrpcError


def test_mount_options() -> None:
    flags, propagation, data = parse_options(["ro,nosuid", "size=5", "rslave", "rw", "defaults"])
    assert flags == libc.MS_NOSUID
    assert propagation == [libc.MS_SLAVE | libc.MS_REC]
    assert data == ["size=5"]


@pytest.mark.parametrize(
    ("path", "bus", "steps"),
    [
        ("02", "0000:00", ["02.0"]),
        ("02/01", "0000:00", ["02.0", "01.0"]),
        ("1f.3/00.1", "0000:00", ["1f.3", "00.1"]),
        ("20/00/02", "0000:20", ["00.0", "02.0"]),
    ],
)
def test_guest_pci_paths(path: str, bus: str, steps: list[str]) -> None:
    assert pci_address_steps(path) == (bus, steps)


@pytest.mark.parametrize("path", ["", "zz", "02/20", "02.8", "../..", "02//01"])
def test_bad_guest_pci_paths(path: str) -> None:
    with pytest.raises(TtrpcError, match="bad PCI path"):
        pci_address_steps(path)
