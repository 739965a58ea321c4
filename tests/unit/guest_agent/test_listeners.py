"""Listening ports out of the kernel's tables."""

from __future__ import annotations

import pytest

from guest_agent.listeners import listening

HEAD = "0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 1 1"
ANY4, ANY6 = "00000000:0000", "0" * 32 + ":0000"
MAPPED = "0000000000000000FFFF00000100007F"


def line(local: str, state: str, remote: str = ANY4) -> str:
    return HEAD.format(local=local, remote=remote, state=state)


@pytest.mark.parametrize(
    ("local", "state", "ports"),
    [
        ("00000000:1F90", "0A", [8080]),
        ("6402000A:0050", "0A", [80]),
        ("0100007F:1F90", "0A", []),
        ("0000087F:1F90", "0A", []),
        ("00000000:1F90", "01", []),
        ("0" * 32 + ":0016", "0A", [22]),
        ("0" * 24 + "01000000:0016", "0A", []),
        (f"{MAPPED}:0016", "0A", []),
    ],
)
def test_one_socket(local: str, state: str, ports: list[int]) -> None:
    assert list(listening([line(local, state)], "0A")) == ports


@pytest.mark.parametrize(
    ("local", "ports"),
    [
        ("00000000:1F90", [8080]),
        ("0" * 32 + ":0016", [22]),
        ("0100007F:1F90", [8080]),
        ("0" * 24 + "01000000:0016", [22]),
        ("0000000000000000FFFF000000000000:0016", [22]),
        ("6402000A:0050", []),
    ],
)
def test_what_the_loopback_reaches(local: str, ports: list[int]) -> None:
    assert list(listening([line(local, "0A")], "0A", local=True)) == ports
