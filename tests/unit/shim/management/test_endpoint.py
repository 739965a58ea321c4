"""The management socket: there with the VM, gone with it, and nothing until it is used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from shim.cleanup.ledger import Ledger
from shim.cleanup.rollback import Rollback
from shim.log import INFO, Log
from shim.management import endpoint as module
from shim.management.endpoint import ManagementEndpoint, Serve, socket_path

LOG = Log(-1, INFO, {})


async def greet(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(b"hello")


class Case:
    def __init__(self, state: Path) -> None:
        self.loads = 0
        self.ledger = Ledger.create(str(state), "ns", "x" * 64)
        self.path = socket_path(str(state), "ns", "x" * 64)
        os.makedirs(os.path.dirname(self.path))
        self.link = state / "ns" / ("x" * 64) / "shim-monitor.sock"
        self.endpoint = ManagementEndpoint(self.path, self.ledger, self.load, LOG)
        self.cleanup = Rollback(LOG)

    def load(self) -> Serve:
        self.loads += 1
        return greet

    async def ask(self) -> bytes:
        async with await trio.open_unix_socket(self.path) as stream:
            return bytes(await stream.receive_some(100))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


async def test_its_life(case: Case) -> None:
    async with trio.open_nursery() as nursery:
        await case.endpoint.open(case.cleanup, nursery)
        assert os.readlink(case.link) == case.path
        assert stat.S_IMODE(os.stat(case.path).st_mode) == 0o600
        assert case.loads == 0
        assert [await case.ask(), await case.ask()] == [b"hello"] * 2
        assert case.loads == 1
        assert [e.text("path") for e in case.ledger.entries()] == [str(case.link)]
        await case.cleanup.unwind()
        assert case.ledger.entries() == []
        assert os.listdir(os.path.dirname(case.path)) == []
        assert case.ledger.close()
        assert not case.link.parent.exists()


async def test_a_connection_in_use_does_not_hold_the_end_up(case: Case) -> None:
    async def stay(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    case.endpoint = ManagementEndpoint(case.path, case.ledger, lambda: stay, LOG)
    async with trio.open_nursery() as nursery:
        await case.endpoint.open(case.cleanup, nursery)
        async with await trio.open_unix_socket(case.path) as stream:
            await trio.testing.wait_all_tasks_blocked()  # it is accepted
            await case.cleanup.unwind()
            assert await stream.receive_some(1) == b""
    case.ledger.close()


async def test_what_a_former_shim_left_is_replaced(case: Case) -> None:
    case.link.symlink_to("/nowhere")
    Path(case.path).touch()
    async with trio.open_nursery() as nursery:
        await case.endpoint.open(case.cleanup, nursery)
        assert await case.ask() == b"hello"
        await case.cleanup.unwind()
    case.ledger.close()


async def test_a_pod_runs_without_it(case: Case) -> None:
    os.rmdir(os.path.dirname(case.path))
    async with trio.open_nursery() as nursery:
        await case.endpoint.open(case.cleanup, nursery)
        assert case.ledger.entries() == []
        assert not case.link.is_symlink()
        await case.cleanup.unwind()
    case.ledger.close()


async def test_another_user_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_same_user", lambda _socket: False)
    async with trio.open_nursery() as nursery:
        await case.endpoint.open(case.cleanup, nursery)
        assert await case.ask() == b""
        assert case.loads == 0
        await case.cleanup.unwind()
    case.ledger.close()
