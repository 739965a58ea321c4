from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest

from guest_agent import main
from guest_agent.loop import Loop
from guest_agent.rpc import Deferred

if TYPE_CHECKING:
    from guest_agent.children import Children

HEAVY = {
    "asyncio",
    "contextlib",
    "ctypes",
    "dataclasses",
    "enum",
    "functools",
    "google",
    "json",
    "logging",
    "pathlib",
    "re",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "trio",
    "typing",
}
LATER = {
    f"guest_agent.{name}"
    for name in ("console", "dial", "iptables", "listeners", "metrics", "network", "sockets")
}


def test_the_agent_starts_without_heavy_modules() -> None:
    code = "import sys; sys.path.insert(0, '.'); import guest_agent.main; print(*sys.modules)"
    output = subprocess.check_output([sys.executable, "-ISc", code], text=True)
    assert not (HEAVY | LATER) & set(output.split())


def test_methods_of_modules_imported_later_have_their_handlers() -> None:
    loop = Loop()
    for names, handlers in (
        (main._NETWORK, main._network(loop)),
        (main._IPTABLES, main._iptables(cast("Children", None))),  # a real one takes SIGCHLD
        (main._PORTS, main._ports(loop)),
        (main._SOCKETS, main._sockets(loop)),
        (("GetMetrics",), main._metrics()),
        (("Console",), main._console(loop, cast("Children", None), True)),
    ):
        assert set(names) == set(handlers)


def test_a_module_imported_later_is_loaded_once() -> None:
    loads: list[int] = []

    def load() -> dict[str, str]:
        loads.append(1)
        return {"A": "a", "B": "b"}

    deferred = Deferred(load)
    assert [deferred.find("A"), deferred.find("B"), loads] == ["a", "b", [1]]
    with pytest.raises(KeyError):
        deferred.find("C")
