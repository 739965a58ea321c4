from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.cleanup import ledger as ledgers
from shim.cleanup import process_table
from shim.cleanup.ledger import Ledger
from shim.errors import AlreadyExists, Internal, InvalidArgument, NotFound


def test_entries_survive_in_order_with_their_changes(tmp_path: Path) -> None:
    ledger = Ledger.create(str(tmp_path), "default", "c1")
    first = ledger.add("process", pid=0, start_time=0, role="vmm", marker="/run/katapy/s/x")
    second = ledger.add("mount", target="/run/m", container="c1")
    third = ledger.add("file", path="/run/f")
    ledger.update(first, pid=17, start_time=4711)
    ledger.remove(third)
    ledger.remove(third)
    read = Ledger.load(ledger.path)
    assert [(e.id, e.kind, e.fields) for e in read.entries()] == [
        (
            first.id,
            "process",
            {"pid": 17, "start_time": 4711, "role": "vmm", "marker": "/run/katapy/s/x"},
        ),
        (second.id, "mount", {"target": "/run/m", "container": "c1"}),
    ]
    assert (read.namespace, read.sandbox_id) == ("default", "c1")
    assert read.owner == process_table.own_identity()
    assert read.this_boot
    assert (read.entries()[1].container, read.entries()[0].container) == ("c1", "")
    with pytest.raises(ValueError, match="for reading only"):
        read.add("file", path="/x")
    assert not ledger.close()


def test_empty_ledger_takes_its_directories_along(tmp_path: Path) -> None:
    ledger = Ledger.create(str(tmp_path), "default", "c1")
    other = Ledger.create(str(tmp_path), "default", "c2")
    entry = ledger.add("dir", path="/x")
    ledger.remove(entry)
    assert ledger.close()
    assert ledger.close()
    assert os.listdir(tmp_path / "default") == ["c2"]
    assert other.close()
    assert os.listdir(tmp_path) == []


def test_owned_ledger_is_refused_and_a_left_one_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "CREATE_TIMEOUT", 0.02)
    ledger = Ledger.create(str(tmp_path), "n", "s")
    ledger.add("file", path="/left")
    with pytest.raises(AlreadyExists, match="owned by a running process"):
        Ledger.create(str(tmp_path), "n", "s")
    with pytest.raises(AlreadyExists, match="owned by a running process"):
        Ledger.open(ledger.path)
    ledger.close()
    with Ledger.create(str(tmp_path), "n", "s") as again:
        assert [e.text("path") for e in again.entries()] == ["/left"]
        assert again.add("file", path="/new").id == 2


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        Ledger.create(str(tmp_path), "n", "s").add("file", path="/left")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with Ledger.open(ledgers.ledger_path(str(tmp_path), "n", "s")) as ledger:
        assert len(ledger.entries()) == 1
        assert ledger.owner[0] == pid


def test_missing_and_unreadable_ledgers(tmp_path: Path) -> None:
    path = ledgers.ledger_path(str(tmp_path), "n", "s")
    for read in (Ledger.load, Ledger.open):
        with pytest.raises(NotFound, match=path):
            read(path)
    os.makedirs(os.path.dirname(path))
    with pytest.raises(NotFound, match=path):
        Ledger.open(path)
    for text in ("", "{", "[]", '{"format":2}', '{"format":1}'):
        Path(path).write_text(text)
        with pytest.raises(Internal, match="is not a ledger"):
            Ledger.open(path)
        with pytest.raises(Internal, match="is not a ledger"):
            Ledger.create(str(tmp_path), "n", "s")
    assert Path(path).exists()


def test_bad_entries_and_names(tmp_path: Path) -> None:
    with Ledger.create(str(tmp_path), "n", "s") as ledger:
        with pytest.raises(ValueError, match="unknown kind"):
            ledger.add("planet", name="mars")
        with pytest.raises(ValueError, match="process needs start_time, role"):
            ledger.add("process", pid=1)
        assert ledger.entries() == []
    with pytest.raises(InvalidArgument, match="cannot name a directory"):
        Ledger.create(str(tmp_path), "n", "../s")


def test_entry_that_could_not_be_written_is_not_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.create(str(tmp_path), "n", "s") as ledger:

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(Internal, match="No space"):
                ledger.add("file", path="/x")
        assert ledger.entries() == []
        assert Ledger.load(ledger.path).entries() == []
        ledger.remove(ledger.add("file", path="/y"))


def test_ledger_of_another_boot(tmp_path: Path) -> None:
    with Ledger.create(str(tmp_path), "n", "s") as ledger:
        ledger.add("file", path="/x")
    document = json.loads(Path(ledger.path).read_text())
    document["boot"] = "00000000-0000-0000-0000-000000000000"
    Path(ledger.path).write_text(json.dumps(document))
    assert not Ledger.load(ledger.path).this_boot


CALLS = ("open", "write", "fsync", "close", "rename")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("nth", [1, 2, 4, 5])
@pytest.mark.parametrize("after", [False, True])
def test_crash_at_any_step_loses_nothing_that_was_confirmed(
    tmp_path: Path, call: str, nth: int, after: bool
) -> None:
    with Ledger.create(str(tmp_path), "n", "s") as ledger:
        ledger.add("file", path="/0")
    path = ledger.path
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            _crash_while_adding(path, write_fd, call, nth, after)
        finally:
            os._exit(1)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        confirmed = len(pipe.read())
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    with Ledger.open(path) as survived:
        paths = [entry.text("path") for entry in survived.entries()]
        assert paths[: confirmed + 1] == [f"/{n}" for n in range(confirmed + 1)]
        assert len(paths) <= confirmed + 2
        for entry in survived.entries():
            survived.remove(entry)
    assert os.listdir(tmp_path) == []


def _crash_while_adding(path: str, pipe: int, call: str, nth: int, after: bool) -> None:
    ledger = Ledger.open(path)
    real_write = os.write
    count = 0

    def crashing(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            result = real(*args, **kwargs) if after or count < nth else None
            if count == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    setattr(os, call, crashing(getattr(os, call)))
    for number in range(1, 10):
        ledger.add("file", path=f"/{number}")
        real_write(pipe, b"x")


def test_all_ledgers_are_found(tmp_path: Path) -> None:
    (tmp_path / "s" / "0123").mkdir(parents=True)
    (tmp_path / "note").write_text("")
    made = [Ledger.create(str(tmp_path), n, s) for n, s in (("a", "x"), ("a", "y"), ("b", "x"))]
    assert list(ledgers.find_all(str(tmp_path))) == [ledger.path for ledger in made]
    assert list(ledgers.find_all(str(tmp_path / "none"))) == []
    for ledger in made:
        ledger.close()


def test_runtime_directories_are_short_and_distinct() -> None:
    one = ledgers.runtime_dir("/run/katapy", "k8s.io", "p" * 200)
    two = ledgers.runtime_dir("/run/katapy", "k8s.io", "p" * 201)
    assert one != two
    assert len(one) == len("/run/katapy/s/") + 20
