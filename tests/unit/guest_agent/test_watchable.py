"""Copies that follow small volumes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from guest_agent import libc, watchable
from guest_agent.loop import Loop
from guest_agent.watchable import Watched
from tests.unit.shim.storage.test_tree import version


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name[:2] != ".."}


class Follower:
    """Runs the loop until something is so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watchable, "_INTERVAL_SECONDS", 0.01)
        self.loop = Loop()

    def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            waited = 0.0
            while not condition():
                await self.loop.sleep(0.01)
                waited += 0.01
                assert waited < 5

        self.loop.run(wait())


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Follower:
    return Follower(monkeypatch)


def test_a_config_map_is_followed(follower: Follower, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "w/target"
    source.mkdir(mode=0o750)
    version(source, "..1", key="one", other="x")
    watched = Watched(follower.loop, str(source), str(target))
    assert content(target) == {"key": "one", "other": "x"}
    assert target.stat().st_mode == source.stat().st_mode
    assert os.readlink(target / "..data") == "..1"
    version(source, "..2", key="two", more="y")
    (source / "other").unlink()
    shutil.rmtree(source / "..1")
    follower.until(lambda: not (target / "..1").exists())
    assert content(target) == {"key": "two", "more": "y"}
    assert os.readlink(target / "..data") == "..2"
    (source / "..2/key").write_text("three")
    (source / "..2/key").chmod(0o400)
    follower.until(lambda: content(target)["key"] == "three")
    assert (target / "key").stat().st_mode & 0o777 == 0o400
    watched.stop()
    watched.stop()
    assert not target.exists()
    version(source, "..3", key="four")
    follower.until(lambda: True)
    assert not target.exists()


def test_a_single_file_stays_the_same_one(follower: Follower, tmp_path: Path) -> None:
    source, target = tmp_path / "hosts", tmp_path / "w/hosts"
    source.write_text("one")
    watched = Watched(follower.loop, str(source), str(target))
    inode = target.stat().st_ino
    source.write_text("longer")
    follower.until(lambda: target.read_text() == "longer")
    assert target.stat().st_ino == inode
    watched.stop()
    assert list((tmp_path / "w").iterdir()) == []


@pytest.mark.parametrize("number", [watchable.ENTRIES_MAX, 1])
def test_what_is_too_large_is_bound(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    mounts: list[tuple[str, str]] = []
    source, target = tmp_path / "source", tmp_path / "w/target"
    monkeypatch.setattr(libc, "mount", lambda what, where, *_: mounts.append((what, where)))
    monkeypatch.setattr(libc, "umount", lambda where: mounts.remove((str(source), where)))
    source.mkdir()
    for index in range(number):
        (source / f"f{index}").write_bytes(b"x" * (10 if number > 1 else watchable.BYTES_MAX + 1))
    watched = Watched(follower.loop, str(source), str(target))
    assert mounts == [(str(source), str(target))]
    watched.stop()
    assert mounts == []
    assert not target.exists()


def test_a_missing_source_is_an_error(follower: Follower, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Watched(follower.loop, str(tmp_path / "none"), str(tmp_path / "w/target"))
