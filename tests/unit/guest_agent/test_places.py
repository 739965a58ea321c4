"""Numbers that differ between architectures, and places of devices in sysfs."""

from __future__ import annotations

import os
import termios
from importlib import reload

import pytest

from guest_agent import ioctls
from guest_agent.block import is_ccw, pci_folder


def test_ioctl_numbers_are_this_architecture_s() -> None:
    assert (ioctls.FIONREAD, ioctls.TIOCSWINSZ) == (termios.FIONREAD, termios.TIOCSWINSZ)


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        ("x86_64", (0x541B, 0x5414, 0x40085203, 0x5207, 0x40086610, 0x4010586E, 0x80705864)),
        # Documentation/userspace-api/ioctl: powerpc has three bits of direction.
        (
            "ppc64le",
            (0x4004667F, 0x80087467, 0x80085203, 0x20005207, 0x80086610, 0x8010586E, 0x40705864),
        ),
    ],
)
def test_ioctl_numbers(
    monkeypatch: pytest.MonkeyPatch, machine: str, numbers: tuple[int, ...]
) -> None:
    with monkeypatch.context() as patch:
        uname = os.uname()
        named = os.uname_result((*tuple(uname)[:4], machine))
        patch.setattr(os, "uname", lambda: named)
        reload(ioctls)
        found = (
            ioctls.FIONREAD,
            ioctls.TIOCSWINSZ,
            ioctls.RNDADDENTROPY,
            ioctls.RNDRESEEDCRNG,
            ioctls.EXT4_IOC_RESIZE_FS,
            ioctls.XFS_IOC_FSGROWFSDATA,
            ioctls.XFS_IOC_FSGEOMETRY_V1,
        )
    reload(ioctls)
    assert found == numbers


@pytest.mark.parametrize(
    ("place", "ccw"),
    [("0.0.0001", True), ("0.3.ffff", True), ("02/00", False), ("10.3/00", False), ("1b", False)],
)
def test_places_on_ccw(place: str, ccw: bool) -> None:
    assert is_ccw(place) is ccw


def test_no_folder_where_nothing_is() -> None:
    assert pci_folder("1f/1e/1d") == ""
