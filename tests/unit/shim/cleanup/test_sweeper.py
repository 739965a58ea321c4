from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cleanup import process_table, sweeper, undo
from shim.cleanup.ledger import LOGGER_ROLE, Entry, Ledger
from tests.support.waiting import eventually


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(str(tmp_path / "state"), "n", "s") as made:
        yield made


def test_everything_goes_and_others_stay(ledger: Ledger, tmp_path: Path) -> None:
    root = tmp_path / "owned"
    root.mkdir()
    ledger.add("dir", path=str(root))
    ledger.add("dir", path=str(root / "sub"))
    (root / "sub").mkdir()
    ledger.add("file", path=str(root / "sub" / "file"))
    (root / "sub" / "file").write_text("x")
    ledger.add("socket", path=str(root / "sock"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
    ledger.add("file", path=str(root / "never-made"))
    (tmp_path / "other").write_text("x")
    problems: list[str] = []
    assert sweeper.sweep(ledger, problems.append) == []
    assert problems == []
    assert ledger.entries() == []
    assert sorted(os.listdir(tmp_path)) == ["other", "state"]
    assert ledger.close()
    assert os.listdir(tmp_path / "state") == []


def test_processes_end_by_identity_only(ledger: Ledger) -> None:
    ours = subprocess.Popen(["sleep", "1001"])
    other = subprocess.Popen(["sleep", "1002"])
    try:
        start = {p.pid: process_table.start_time(p.pid) or 0 for p in (ours, other)}
        ledger.add("process", pid=ours.pid, start_time=start[ours.pid], role="vmm")
        ledger.add("process", pid=other.pid, start_time=start[other.pid] - 1, role="virtiofsd")
        assert sweeper.sweep(ledger, print) == []
        assert ours.wait(5) == -9
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_a_logging_program_may_finish_what_it_has(ledger: Ledger, tmp_path: Path) -> None:
    last = tmp_path / "last"
    ending = subprocess.Popen(["sh", "-c", f"sleep 0.2; echo done >{last}"])
    staying = subprocess.Popen(["sleep", "1003"])
    try:
        for process in (ending, staying):
            started = process_table.start_time(process.pid) or 0
            ledger.add("process", pid=process.pid, start_time=started, role=LOGGER_ROLE)
        assert sweeper.sweep(ledger, print) == []
        assert (ending.wait(5), staying.wait(5)) == (0, -9)
        assert last.read_text() == "done\n"
    finally:
        for process in (ending, staying):
            process.kill()
            process.wait()


def test_process_whose_pid_was_never_recorded_is_found_by_its_marker(
    ledger: Ledger, tmp_path: Path
) -> None:
    marker = str(tmp_path / "runtime")
    process = subprocess.Popen(["sh", "-c", "read x", marker], stdin=subprocess.PIPE)
    try:
        ledger.add("process", pid=0, start_time=0, role="vmm", marker=marker)
        eventually(lambda: process_table.find_by_marker(marker), "it runs", timeout=10)
        assert sweeper.sweep(ledger, print) == []
        assert process.wait(5) == -9
    finally:
        process.kill()
        process.communicate()


def test_one_container_of_the_sandbox(ledger: Ledger, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("")
    ledger.add("file", path=str(tmp_path / "a"), container="c1")
    ledger.add("file", path=str(tmp_path / "b"), container="c2")
    ledger.add("file", path=str(tmp_path / "c"))
    assert sweeper.sweep(ledger, print, container="c1") == []
    assert [e.text("path") for e in ledger.entries()] == [str(tmp_path / n) for n in "bc"]
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "state"]
    sweeper.sweep(ledger, print)


def test_failed_step_is_reported_kept_and_skips_nothing(ledger: Ledger, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "foreign").write_text("")
    ledger.add("file", path=str(tmp_path / "after"))
    (tmp_path / "after").write_text("")
    kept = ledger.add("dir", path=str(full))
    ledger.add("pod_cgroup", name="/katapy/../../etc")
    problems: list[str] = []
    left = sweeper.sweep(ledger, problems.append)
    assert [entry.kind for entry in left] == ["dir", "pod_cgroup"]
    assert left[0].id == kept.id
    assert len(problems) == 2
    assert "/etc is no cgroup of ours" in problems[0]
    assert "not empty" in problems[1]
    assert not (tmp_path / "after").exists()
    assert not ledger.close()
    read = Ledger.load(ledger.path)
    assert [entry.kind for entry in read.entries()] == ["dir", "pod_cgroup"]


def test_hanging_step_is_left_behind(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "STEP_TIMEOUT", 0.1)
    read_fd, write_fd = os.pipe()
    monkeypatch.setitem(undo._ACTIONS, "mount", lambda _: os.read(read_fd, 1))
    ledger.add("file", path=str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    ledger.add("mount", target="/stuck")
    problems: list[str] = []
    started = time.monotonic()
    assert [e.kind for e in sweeper.sweep(ledger, problems.append)] == ["mount"]
    assert time.monotonic() - started < 30
    assert "not undone within 0.1 s" in problems[0]
    assert not (tmp_path / "file").exists()
    os.write(write_fd, b"x")
    os.close(write_fd)


def test_listening_socket_is_not_taken_from_its_owner(ledger: Ledger, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    entry = ledger.add("socket", path=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        problems: list[str] = []
        assert [e.id for e in sweeper.sweep(ledger, problems.append)] == [entry.id]
        assert "somebody still listens" in problems[0]
    assert sweeper.sweep(ledger, print) == []


def test_tree_goes_without_following_links(ledger: Ledger, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "link").symlink_to(outside)
    ledger.add("dir", path=str(tree), tree=True)
    assert sweeper.sweep(ledger, print) == []
    assert not tree.exists()
    assert (outside / "kept").exists()
    undo.undo(Entry(1, "dir", {"path": str(tree), "tree": True}))


def test_after_a_reboot_only_files_are_touched(ledger: Ledger, tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "1003"])
    try:
        started = process_table.start_time(process.pid) or 0
        ledger.add("process", pid=process.pid, start_time=started, role="vmm")
        ledger.add("netdev", name="lo", netns="")
        ledger.add("file", path=str(tmp_path / "file"))
        (tmp_path / "file").write_text("")
        ledger.close()
        document = json.loads(Path(ledger.path).read_text())
        document["boot"] = "another"
        Path(ledger.path).write_text(json.dumps(document))
        assert sweeper.sweep_all(str(tmp_path / "state"), print) == (1, 0)
        assert process.poll() is None
        assert not (tmp_path / "file").exists()
        assert not os.path.exists(ledger.path)
    finally:
        process.kill()
        process.wait()


def test_ledgers_in_use_and_unreadable_ones_are_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add("file", path="/nowhere/file")
    bad = tmp_path / "state" / "n" / "bad" / "ledger.json"
    bad.parent.mkdir()
    bad.write_text("garbage")
    problems: list[str] = []
    assert sweeper.sweep_all(str(tmp_path / "state"), problems.append) == (0, 1)
    assert len(problems) == 1
    assert "is not a ledger" in problems[0]
    assert len(ledger.entries()) == 1
    sweeper.sweep(ledger, print)
