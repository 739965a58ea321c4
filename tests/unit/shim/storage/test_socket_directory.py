"""Sockets of a shared directory: which are found, and which the guest gets when."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shim.errors import Unavailable
from shim.storage import socket_directory
from shim.storage.host_socket import HostSocket, hold
from shim.storage.options import IdMap, Owners
from shim.storage.socket_directory import SocketDirectory, answers, find_sockets
from shim.storage.socket_proxy import Owner


def serve(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_two_levels_are_looked_at_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("s", "a/s", "a/b/deep"):
        serve(tmp_path / name).close()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("s")
    (tmp_path / "folder").symlink_to("a")
    found = find_sockets(str(tmp_path))
    assert sorted(found.sockets) == ["a/s", "s"]
    assert found.directories == (str(tmp_path), str(tmp_path / "a"))
    assert found.complete
    assert found.sockets["s"][1] == Owner(0, 0, (tmp_path / "s").stat().st_mode & 0o777)


def test_there_are_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        serve(tmp_path / str(number)).close()
    monkeypatch.setattr(socket_directory, "SOCKETS_MAX", 3)
    found = find_sockets(str(tmp_path))
    assert (len(found.sockets), found.complete) == (3, False)
    monkeypatch.setattr(socket_directory, "ENTRIES_MAX", 2)
    found = find_sockets(str(tmp_path))
    assert (len(found.sockets), found.complete) == (2, False)


async def test_only_a_listening_stream_socket_answers(tmp_path: Path) -> None:
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagram.bind(str(tmp_path / "datagram"))
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "bound"))
    folder = hold(str(tmp_path))

    def host(name: str) -> HostSocket:
        return HostSocket(f"{tmp_path}/{name}", folder, name)

    with serve(tmp_path / "s") as full, datagram, bound:
        assert await answers(host("s"))
        full.listen(0)  # its queue holds the one above
        assert await answers(host("s"))
        # No link leads anywhere, last or on the way, and no other kind of file.
        (tmp_path / "inner").mkdir()
        with serve(tmp_path / "inner/s"):
            assert await answers(host("inner/s"))
            (tmp_path / "folder").symlink_to("inner")
            assert not await answers(host("folder/s"))
        (tmp_path / "link").symlink_to("s")
        (tmp_path / "file").touch()
        refused = ("datagram", "bound", "none", "x" * 300, "link", "inner", "file")
        for name in refused:
            assert not await answers(host(name)), name
    os.close(folder)


class Guest:
    """Takes the place of the proxies: says what is covered in the guest."""

    def __init__(self) -> None:
        self.covered: dict[str, Any] = {}
        self.again: list[str] = []
        self.failing = False
        self.lost = trio.Event()

    def make(self, host: HostSocket, guest: str, owner: Owner, cover: str) -> Any:
        return Proxy(self, (host.path, guest, owner), cover)


class Proxy:
    def __init__(self, guest: Guest, what: Any, cover: str) -> None:
        self._guest, self._what, self._cover = guest, what, cover

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        if self._guest.failing:
            raise Unavailable("not now")
        self._guest.covered[self._cover] = self._what
        task_status.started()
        try:
            await self._guest.lost.wait()
        finally:
            del self._guest.covered[self._cover]
        raise Unavailable("it has ended")

    async def cover_again(self) -> None:
        self._guest.again.append(self._cover)


@pytest.fixture
def guest() -> Guest:
    return Guest()


@asynccontextmanager
async def following(
    path: Path, guest: Guest, owners: Owners | None = None
) -> AsyncIterator[SocketDirectory]:
    directory = SocketDirectory(str(path), "/share/v", "/sockets/v", guest.make, owners)
    async with trio.open_nursery() as nursery:
        await nursery.start(directory.run)
        yield directory
        nursery.cancel_scope.cancel()


async def until(condition: Any) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)


async def test_sockets_come_are_replaced_and_go(tmp_path: Path, guest: Guest) -> None:
    path = tmp_path / "s"
    with serve(path):
        owners = Owners((IdMap(0, 1000, 10),), (IdMap(0, 2000, 10),))
        async with following(tmp_path, guest, owners):
            host, listening, owner = guest.covered["/share/v/s"]
            assert (host, listening) == (str(path), "/sockets/v-1")
            assert (owner.uid, owner.gid) == (1000, 2000)
            (tmp_path / "inner").mkdir()
            with serve(tmp_path / "inner/s"):
                await until(lambda: "/share/v/inner/s" in guest.covered)
            path.unlink()
            with serve(path):
                await until(lambda: guest.again or "/share/v/s" not in guest.covered)
                await until(lambda: "/share/v/s" in guest.covered)
            path.unlink()
            await until(lambda: "/share/v/s" not in guest.covered)
        assert guest.covered == {}


async def test_one_that_listens_late_is_tried_again(tmp_path: Path, guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as late:
        late.bind(str(tmp_path / "s"))
        async with following(tmp_path, guest):
            assert guest.covered == {}
            late.listen()
            await until(lambda: guest.covered)


async def test_a_guest_that_refuses_is_asked_again(tmp_path: Path, guest: Guest) -> None:
    guest.failing = True
    with serve(tmp_path / "s"):
        async with following(tmp_path, guest):
            assert guest.covered == {}
            guest.failing = False
            await until(lambda: guest.covered)


async def test_one_that_the_guest_loses_comes_again(tmp_path: Path, guest: Guest) -> None:
    with serve(tmp_path / "s"):
        async with following(tmp_path, guest):
            lost, guest.lost = guest.lost, trio.Event()
            lost.set()
            await until(lambda: not guest.covered)
            await until(lambda: guest.covered)


async def test_without_a_watch_there_is_what_is_there_at_first(
    tmp_path: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_changes: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket_directory, "Watch", refuse)
    with serve(tmp_path / "s"):
        async with following(tmp_path, guest):
            assert "/share/v/s" in guest.covered
    assert "max_user_instances" in caplog.text
