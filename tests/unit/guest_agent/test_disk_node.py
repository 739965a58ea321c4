"""A disk's node is there a moment before the disk can be opened."""

from __future__ import annotations

import errno
import os

import pytest

from guest_agent import block
from guest_agent.loop import Loop
from shim.ttrpc.status import TtrpcError

NODE = "/dev/null"


def find(monkeypatch: pytest.MonkeyPatch, *, failures: int) -> object:
    """Find a disk whose node fails to open so many times."""
    left = failures
    really_open = os.open

    def open_late(path: str, flags: int) -> int:
        nonlocal left
        if path == NODE and left:
            left -= 1
            raise OSError(errno.ENXIO, "No such device or address")
        return really_open(path, flags)

    monkeypatch.setattr(block, "timeout_seconds", 0.1)
    loop = Loop()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", open_late)
            return loop.run(block.find(loop, "mmioblk", NODE))
    finally:
        loop.close()


def test_waits_until_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, failures=2) == NODE


def test_one_that_never_opens_did_not_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TtrpcError, match="did not appear"):
        find(monkeypatch, failures=1000)
