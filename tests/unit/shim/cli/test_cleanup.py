from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cleanup import process_table
from shim.cleanup.ledger import Ledger
from shim.cli.main import main


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_what_a_dead_shim_left_is_undone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    state, left = tmp_path / "state", tmp_path / "left"
    left.write_text("x")
    started = process_table.start_time(sleeper.pid)
    assert started is not None
    with Ledger.create(str(state), "default", "dead") as ledger:
        ledger.add("file", path=str(left))
        ledger.add("process", pid=sleeper.pid, start_time=started, role="vmm")

    assert main(["cleanup", "--state-dir", str(state), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "default/dead:" in said
    assert str(left) in said
    assert f"pid={sleeper.pid}" in said
    assert said.endswith("1 dead sandbox to clean up\n")
    assert left.exists()
    assert sleeper.poll() is None

    assert main(["cleanup", "--state-dir", str(state)]) == 0
    assert capsys.readouterr().out == "1 dead sandbox cleaned up\n"
    assert not left.exists()
    assert sleeper.wait(10) == -9
    assert not list(state.glob("*/*/*"))
    assert main(["cleanup", "--state-dir", str(state)]) == 0
    assert capsys.readouterr().out == "0 dead sandboxes cleaned up\n"


def test_a_living_sandbox_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    with Ledger.create(str(tmp_path / "state"), "default", "alive") as ledger:
        entry = ledger.add("file", path=str(kept))
        for words in ([], ["--dry-run"]):
            assert main(["cleanup", "--state-dir", str(tmp_path / "state"), *words]) == 0
            assert capsys.readouterr().out.startswith("0 dead sandboxes")
        assert kept.exists()
        ledger.remove(entry)


def test_what_can_not_be_undone_is_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with Ledger.create(str(tmp_path / "state"), "default", "dead") as ledger:
        ledger.add("dir", path=str(full))
    assert main(["cleanup", "--state-dir", str(tmp_path / "state")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "1 dead sandbox cleaned up, 1 not fully\n"
    assert str(full) in captured.err
    assert full.exists()
    (full / "file").unlink()
    assert main(["cleanup", "--state-dir", str(tmp_path / "state")]) == 0
    assert not full.exists()


def test_a_damaged_ledger_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "default/broken/ledger.json"
    ledger.parent.mkdir(parents=True)
    ledger.write_text("{")
    for words in ([], ["--dry-run"]):
        assert main(["cleanup", "--state-dir", str(tmp_path), *words]) == 1
        assert str(ledger) in capsys.readouterr().err
