"""Which of the guest's ports the host listens on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shim.net import host_proxy
from shim.net.host_proxy import HostProxy, Listener


class Guest:
    """Tells one set of listeners after another."""

    features = ("listeners",)

    def __init__(self, *told: set[Listener]) -> None:
        self._told = list(told)

    async def listeners(self) -> AsyncIterator[set[Listener]]:
        for now in self._told:
            yield now


async def reflected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *told: set[Listener]
) -> tuple[set[int], list[str]]:
    """What is listened on in the end, and the warnings."""
    warnings: list[str] = []
    log: Any = SimpleNamespace(warning=warnings.append, error=warnings.append)
    none: Any = None
    proxy = HostProxy(None, tmp_path, ledger=none, cleanup=none, log=log)
    ports: dict[int, int] = {}

    async def ask(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "remove_hostfwd":
            del ports[arguments["id"]]
            return {}
        number = len(told) * 10_000 + arguments["host_port"]
        ports[number] = arguments["host_port"]
        return {"return": {"id": number}}

    monkeypatch.setattr(proxy, "_ask", ask)
    guest: Any = Guest(*told)
    await proxy.reflect(guest)
    return set(ports.values()), warnings


async def test_no_more_than_there_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_proxy, "PORTS_MAX", 3)
    five = {("tcp", port) for port in range(1, 6)}
    ports, warnings = await reflected(monkeypatch, tmp_path, five, five)
    assert ports == {1, 2, 3}
    assert warnings == ["2 of the pod's ports are not at the host, which listens on 3 for a pod"]


async def test_room_is_used_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_proxy, "PORTS_MAX", 2)
    three: set[Listener] = {("tcp", 1), ("tcp", 2), ("udp", 3)}
    ports, _ = await reflected(monkeypatch, tmp_path, three, {("tcp", 2), ("udp", 3)})
    assert ports == {2, 3}
