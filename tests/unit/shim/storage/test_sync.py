"""The copy in the guest, with a directory in its place that the agent's own code writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from guest_agent import files
from shim.errors import InvalidArgument
from shim.storage import sync
from shim.storage.sync import FileChange, SyncedFiles
from shim.ttrpc.status import TtrpcError
from tests.unit.shim.storage.test_tree import version


class Copy:
    """What the guest has; counts the calls."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "v"
        self.calls: list[Sequence[FileChange]] = []

    async def push(self, changes: Sequence[FileChange]) -> None:
        self.calls.append(changes)
        request: Any = {"volume": "v", "changes": [asdict(change) for change in changes]}
        files.push(request)

    async def pull(self, path: str, limit: int) -> bytes:
        request: Any = {"volume": "v", "path": path, "limit": limit}
        return files.pull(request)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(5):
            while not condition():
                await trio.lowlevel.checkpoint()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    monkeypatch.setattr(files, "PUSHED", str(tmp_path / "guest"))
    return Copy(tmp_path / "guest")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


async def test_versions_follow_each_other(source: Path, copy: Copy) -> None:
    version(source, "..1", a="1")
    async with trio.open_nursery() as nursery:
        await nursery.start(SyncedFiles(str(source), copy.push).run)
        assert (copy.folder / "a").read_text() == "1"
        version(source, "..2", a="2", b="3")
        await copy.until(lambda: not (copy.folder / "..1").exists())
        assert (copy.folder / "a").read_text() == "2"
        assert os.readlink(copy.folder / "b") == "..data/b"
        assert sorted(os.listdir(copy.folder)) == ["..2", "..data", "a", "b"]
        nursery.cancel_scope.cancel()


async def test_many_files_and_a_large_one(source: Path, copy: Copy) -> None:
    contents = {f"k{n}": str(n) for n in range(500)}
    version(source, "..1", **contents, big="x" * (3 << 20))
    async with trio.open_nursery() as nursery:
        await nursery.start(SyncedFiles(str(source), copy.push).run)
        assert (copy.folder / "big").read_text() == "x" * (3 << 20)
        assert {name: (copy.folder / name).read_text() for name in contents} == contents
        assert max(len(call) for call in copy.calls) <= sync.BATCH_CHANGES
        nursery.cancel_scope.cancel()


async def test_plain_directories_are_followed_all_the_way_down(source: Path, copy: Copy) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "f").write_text("1")
    async with trio.open_nursery() as nursery:
        await nursery.start(SyncedFiles(str(source), copy.push).run)
        (source / "sub" / "f").write_text("22")
        await copy.until(lambda: (copy.folder / "sub/f").read_text() == "22")
        (source / "sub" / "deeper").mkdir()
        await copy.until((copy.folder / "sub/deeper").exists)
        (source / "sub" / "deeper" / "g").write_text("new")
        await copy.until((copy.folder / "sub/deeper/g").exists)
        (source / "sub" / "f").unlink()
        (source / "sub" / "f").mkdir()
        await copy.until((copy.folder / "sub/f").is_dir)
        nursery.cancel_scope.cancel()


async def test_a_single_file_is_written_in_place(source: Path, copy: Copy) -> None:
    hosts = source / "hosts"
    hosts.write_text("one")
    synced = SyncedFiles(str(hosts), copy.push, is_file=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(synced.run)
        inode = (copy.folder / "hosts").stat().st_ino
        hosts.write_text("three")
        await copy.until(lambda: (copy.folder / "hosts").read_text() == "three")
        assert (copy.folder / "hosts").stat().st_ino == inode
        nursery.cancel_scope.cancel()


async def test_a_volume_that_goes_away_is_no_error(source: Path, copy: Copy) -> None:
    version(source, "..1", a="1")
    async with trio.open_nursery() as nursery:
        await nursery.start(SyncedFiles(str(source), copy.push).run)
        before = len(copy.calls)
        source.rename(source.with_name("away"))
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(copy.calls) == before
        nursery.cancel_scope.cancel()


async def test_what_is_too_large_is_said(
    source: Path, copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "LIMIT_FILES", 3)
    version(source, "..1", a="1", b="2")
    with pytest.raises(InvalidArgument, match="shared_fs"):
        await SyncedFiles(str(source), copy.push).run()
    assert copy.calls == []


def test_the_agent_keeps_changes_inside_the_volume(copy: Copy, tmp_path: Path) -> None:
    from shim.ttrpc.status import TtrpcError

    def push(**change: Any) -> None:
        fields = asdict(FileChange(**change))
        files.push({"volume": "v", "changes": [fields]})  # type: ignore[arg-type]

    me = {"uid": os.getuid(), "gid": os.getgid()}
    push(path="", file_mode=0o040755, **me)
    (copy.folder / "out").symlink_to(tmp_path)
    for path in ("../x", "a/../../x"):
        with pytest.raises(TtrpcError):
            push(path=path, file_mode=0o100644, **me)
    with pytest.raises(OSError, match="out"):
        push(path="out/x", file_mode=0o100644, **me)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "message"
    path.write_text("from the host")
    return path


async def test_a_file_comes_back_when_the_guest_has_changed_it(file: Path, copy: Copy) -> None:
    inode = file.stat().st_ino
    synced = SyncedFiles(str(file), copy.push, is_file=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(synced.run)
        calls = len(copy.calls)
        await synced.bring_back(copy.pull)
        assert file.read_text() == "from the host"
        for text in ("from", "", "from the guest, and longer"):
            (copy.folder / "message").write_text(text)
            await synced.bring_back(copy.pull)
            assert file.read_text() == text
        assert file.stat().st_ino == inode
        # What this wrote is not pushed again; what somebody else writes is.
        await trio.testing.wait_all_tasks_blocked(cushion=3 * sync.SETTLE_S)
        assert len(copy.calls) == calls
        file.write_text("the host again")
        await copy.until(lambda: (copy.folder / "message").read_text() == "the host again")
        nursery.cancel_scope.cancel()


async def test_the_host_s_change_is_not_undone_by_a_guest_that_made_none(
    file: Path, copy: Copy
) -> None:
    synced = SyncedFiles(str(file), copy.push, is_file=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(synced.run)
        file.write_text("newer")  # not seen yet
        await synced.bring_back(copy.pull)
        assert file.read_text() == "newer"
        nursery.cancel_scope.cancel()


async def test_what_comes_back_is_bounded(
    file: Path, copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "RETURN_BYTES", 100)
    synced = SyncedFiles(str(file), copy.push, is_file=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(synced.run)
        (copy.folder / "message").write_text("x" * 101)
        with pytest.raises(InvalidArgument, match="more than 100 bytes"):
            await synced.bring_back(copy.pull)
        assert file.read_text() == "from the host"
        nursery.cancel_scope.cancel()


async def test_a_link_that_has_taken_the_file_s_place_leads_nowhere_else(
    file: Path, copy: Copy, tmp_path: Path
) -> None:
    synced = SyncedFiles(str(file), copy.push, is_file=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(synced.run)
        (copy.folder / "message").unlink()
        (copy.folder / "message").symlink_to("/etc/passwd")
        with pytest.raises(TtrpcError):
            await synced.bring_back(copy.pull)
        assert file.read_text() == "from the host"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
def test_only_files_of_the_volume_are_read(path: str, copy: Copy) -> None:
    request: Any = {"volume": "v", "path": path, "limit": 10}
    with pytest.raises(TtrpcError, match="no file of a volume"):
        files.pull(request)
