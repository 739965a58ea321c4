from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cleanup import process_table
from tests.support.waiting import eventually
from vmm import spawn


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def identity(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    started = process_table.start_time(process.pid)
    assert started is not None
    return process.pid, started


def test_identity_tells_processes_of_one_pid_apart(sleeper: subprocess.Popen[bytes]) -> None:
    pid, started = identity(sleeper)
    assert process_table.is_alive(pid, started)
    assert not process_table.is_alive(pid, started - 1)
    assert process_table.open_pidfd(pid, started - 1) is None
    assert process_table.kill([(pid, started - 1)], 0.1) == []
    assert sleeper.poll() is None
    assert process_table.kill([(pid, started), (pid, started + 1)], 5) == []
    assert not process_table.is_alive(pid, started)  # a zombie is not alive
    assert sleeper.wait() == -signal.SIGKILL
    assert process_table.start_time(pid) is None
    assert process_table.wait_for_end(pid, started, 0)


def test_wait_gives_up_at_its_deadline(sleeper: subprocess.Popen[bytes]) -> None:
    pid, started = identity(sleeper)
    assert not process_table.wait_for_end(pid, started, 0.05)
    os.kill(pid, signal.SIGKILL)
    assert process_table.wait_for_end(pid, started, 5)


def test_pid_zero_names_nobody() -> None:
    assert not process_table.is_alive(0, 0)
    assert process_table.kill([(0, 0)], 0.1) == []


def test_names_with_odd_characters_are_parsed(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([odd, "1000"])
    try:
        # Its command line shows up a moment after exec has begun.
        found = eventually(
            lambda: process_table.find_by_marker(str(odd)), "the process is found", timeout=10
        )
        assert found == [identity(process)]
    finally:
        process.kill()
        process.wait()


def test_a_marker_in_the_environment() -> None:
    assert process_table.MARKER_VARIABLE == spawn.MARKER_VARIABLE
    child = spawn.spawn(["/bin/sleep", "1000"], marker="/the/pods/own")
    with child:
        found = eventually(
            lambda: process_table.find_by_marker("/the/pods/own"), "it is found", timeout=10
        )
        assert found == [identity(child)]
        # All of it: another's may begin alike.
        assert process_table.find_by_marker("/the/pods/ow") == []
        child.kill()


def test_own_identity_and_marker() -> None:
    pid, started = process_table.own_identity()
    assert pid == os.getpid()
    assert process_table.is_alive(pid, started)
    assert pid not in [found for found, _ in process_table.find_by_marker(sys.executable)]
