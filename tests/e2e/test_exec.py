"""Further processes in a running container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.ctr import Ctr
from tests.support.events import open_events
from tests.support.leaks import Scope, assert_nothing_left, snapshot

pytestmark = [pytest.mark.root, pytest.mark.core]


@pytest.fixture(scope="module")
def running(base_ctr: Ctr, leak_scope: Scope) -> Iterator[str]:
    """A running container for all tests of this module."""
    before = snapshot(leak_scope)
    name = base_ctr.start("sleep", "100000")
    yield name
    base_ctr.remove(name)
    assert_nothing_left(leak_scope, before)


@pytest.fixture
def exec_leak_check(running: str, leak_scope: Scope) -> Iterator[None]:
    before = snapshot(leak_scope)
    yield
    assert_nothing_left(leak_scope, before)


pytestmark.append(pytest.mark.usefixtures("exec_leak_check"))


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(base_ctr: Ctr, running: str, code: int) -> None:
    assert base_ctr.exec(running, "sh", "-c", f"exit {code}").code == code


def test_death_by_signal(base_ctr: Ctr, running: str) -> None:
    assert base_ctr.exec(running, "sh", "-c", "kill -TERM $$").code == 128 + 15


def test_output_and_error_are_apart(base_ctr: Ctr, running: str) -> None:
    output = base_ctr.exec(running, "sh", "-c", "echo out; echo err >&2")
    assert (output.text, output.error) == ("out", "err")


def test_input_reaches_its_end(base_ctr: Ctr, running: str) -> None:
    assert base_ctr.exec(running, "wc", "-c", stdin=b"x" * 300_000).text == "300000"


@pytest.mark.vm
def test_runs_in_the_guest(base_ctr: Ctr, running: str) -> None:
    assert base_ctr.exec(running, "uname", "-r").text != os.uname().release


def test_working_directory(base_ctr: Ctr, running: str) -> None:
    assert base_ctr.exec(running, "pwd", options=["--cwd", "/tmp"]).text == "/tmp"


def test_missing_program_is_an_error_and_harms_nothing(base_ctr: Ctr, running: str) -> None:
    output = base_ctr.exec(running, "/no/such/program")
    assert output.code != 0
    assert "/no/such/program" in output.error
    assert base_ctr.exec(running, "true").code == 0


def test_ten_at_once(base_ctr: Ctr, running: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        outputs = pool.map(
            lambda number: base_ctr.exec(running, "echo", str(number), timeout=90), range(10)
        )
        assert [output.text for output in outputs] == [str(number) for number in range(10)]


def test_events_carry_the_exec_id(base_ctr: Ctr, running: str) -> None:
    with open_events(base_ctr) as events:
        assert base_ctr("tasks", "exec", "--exec-id", "e1", running, "false").code == 1
        events.wait_for(running, "/tasks/exit", timeout=10, exit_status=1)
        order = [topic for topic in events.topics(running) if topic != "delete"]
    assert order == ["exec-added", "exec-started", "exit"]


def test_processes_are_listed(base_ctr: Ctr, running: str) -> None:
    lines = base_ctr.ok("tasks", "ps", running).text.splitlines()
    assert str(base_ctr.pid(running)) in " ".join(lines[1:]).split()


def test_metrics_have_the_guests_figures(base_ctr: Ctr, running: str) -> None:
    text = base_ctr.ok("tasks", "metrics", running).text
    assert running in text
    assert "memory" in text
    assert "cpu" in text
