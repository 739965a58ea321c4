from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.storage.tree import Changed, Entry, chunks, difference, replaced, scan

FILE, FOLDER, LINK = 0o100644, 0o040755, 0o120777


def version(root: Path, name: str, **files: str) -> None:
    """Write a version of a volume as kubelet does, and make it the current one."""
    folder = root / name
    folder.mkdir()
    for key, text in files.items():
        (folder / key).write_text(text)
    (root / "..data_tmp").symlink_to(name)
    os.rename(root / "..data_tmp", root / "..data")
    for key in files:
        if not (root / key).is_symlink():
            (root / key).symlink_to(f"..data/{key}")


def test_only_the_current_version_is_seen(tmp_path: Path) -> None:
    version(tmp_path, "..1", a="1")
    version(tmp_path, "..2", a="2", b="3")
    (tmp_path / "..3").mkdir()
    found = scan(str(tmp_path))
    assert set(found) == {"", "..2", "..2/a", "..2/b", "..data", "a", "b"}
    assert found["..data"].target == "..2"
    assert found["..2/a"].size == 1


def test_plain_directory_and_single_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    assert set(scan(str(tmp_path))) == {"", "sub", "sub/f"}
    assert set(scan(str(tmp_path / "sub" / "f"))) == {""}


def test_a_swap_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version(tmp_path, "..1", a="1")
    readlink = os.readlink
    calls = []

    def swapping(path: str) -> str:
        calls.append(path)
        if len(calls) == 2:
            version(tmp_path, "..2", a="2")
        return readlink(path)

    monkeypatch.setattr(os, "readlink", swapping)
    with pytest.raises(Changed):
        scan(str(tmp_path))


def test_new_files_come_before_the_link_and_old_ones_go_last(tmp_path: Path) -> None:
    version(tmp_path, "..1", a="1")
    old = scan(str(tmp_path))
    version(tmp_path, "..2", a="2", b="3")
    steps = difference(old, scan(str(tmp_path)))
    assert steps.put == ("..2", "..2/a", "..2/b", "..data", "b")
    assert steps.remove == ("..1",)


def test_a_changed_type_is_removed_first() -> None:
    old = {"": Entry(FOLDER, 0, 0), "a": Entry(FOLDER, 0, 0), "a/b": Entry(FILE, 0, 0)}
    new = {"": Entry(FOLDER, 0, 0), "a": Entry(FILE, 0, 0)}
    assert replaced(old, new) == ["a"]
    assert difference(old, new).put == ("a",)


def test_chunks_cover_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdefg")
    assert list(chunks(str(tmp_path / "f"), 7, 3)) == [(0, b"abc"), (3, b"def"), (6, b"g")]
    with pytest.raises(Changed):
        list(chunks(str(tmp_path / "f"), 8, 3))
    (tmp_path / "empty").touch()
    assert list(chunks(str(tmp_path / "empty"), 0, 3)) == [(0, b"")]
    with pytest.raises(Changed):
        list(chunks(str(tmp_path / "none"), 1, 3))


names = st.sampled_from(["a", "b", "..data", "..1", "..2"])
entries = st.builds(
    Entry, st.sampled_from([FILE, FOLDER, LINK]), st.just(0), st.just(0), st.integers(0, 2)
)


@given(st.dictionaries(names, entries), st.dictionaries(names, entries))
def test_the_steps_lead_to_the_new_content(old: dict[str, Entry], new: dict[str, Entry]) -> None:
    result = dict(old)
    steps = difference(old, new)
    for path in replaced(old, new):
        del result[path]
    for path in steps.put:
        result[path] = new[path]
    for path in steps.remove:
        if path not in new:
            del result[path]
    assert result == new
