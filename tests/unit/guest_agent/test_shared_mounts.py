"""Waiting for the mount of another container."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from guest_agent import shared_mounts
from guest_agent.loop import Loop
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError


def bring(path: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have this process be both containers; returns the deadlines of the copies run."""
    monkeypatch.setattr(shared_mounts, "_READY_SECONDS", 0.2)
    calls: list[float] = []

    async def call(_work: object, timeout: float) -> str:
        calls.append(timeout)
        return ""

    container: Any = SimpleNamespace(init=SimpleNamespace(pid=os.getpid()))
    children: Any = SimpleNamespace(call=call)
    mount: Any = {"name": "m", "src_ctr": "maker", "src_path": path, "dst_path": "/x"}
    loop = Loop()
    loop.run(shared_mounts.bring(loop, children, lambda _name: container, mount, os.getpid()))
    return calls


def test_a_mount_that_is_there_is_carried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(bring("/proc/", monkeypatch)) == 1


def test_one_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TtrpcError) as caught:
        bring("/never", monkeypatch)
    assert caught.value.code == status.FAILED_PRECONDITION
    assert "nothing was mounted there within 0.2 s" in caught.value.message
