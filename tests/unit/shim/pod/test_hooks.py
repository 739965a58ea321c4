"""Hooks: what they are told, in which order, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from shim.errors import DeadlineExceeded, Internal, InvalidArgument
from shim.log import Log
from shim.pod.hooks import Hooks


class Warnings:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def log() -> Warnings:
    return Warnings()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def _note(notes: Path, word: str, **more: Any) -> dict[str, Any]:
    """A hook that notes its name, a variable and what came on stdin."""
    script = f'printf "%s %s %s " "$0" "$1" "$WORD" >> {notes}; cat >> {notes}; echo >> {notes}'
    args = ["sh", "-c", script, "zero", "one"]
    return {"path": "/bin/sh", "args": args, "env": [f"WORD={word}"], **more}


def _hooks(log: Warnings, hooks: dict[str, Any]) -> Hooks:
    spec = {"ociVersion": "1.1.0", "hooks": hooks, "annotations": {"a": "b"}}
    pid = os.getpid()
    return Hooks(spec, container_id="c1", bundle="/b", pid=pid, log=cast(Log, log))


async def test_state_arguments_environment_and_order(log: Warnings, notes: Path) -> None:
    kinds = ("createContainer", "poststop", "prestart", "poststart", "createRuntime")
    hooks = _hooks(log, {kind: [_note(notes, kind)] for kind in kinds if "Container" not in kind})
    await hooks.before_create()
    await hooks.after_start()
    await hooks.after_stop()
    lines = [line.split(" ", 3) for line in notes.read_text().splitlines()]
    assert [line[:3] for line in lines] == [
        ["zero", "one", kind] for kind in ("prestart", "createRuntime", "poststart", "poststop")
    ]
    states = [json.loads(line[3]) for line in lines]
    state = {"ociVersion": "1.1.0", "id": "c1", "bundle": "/b", "annotations": {"a": "b"}}
    assert states[0] == states[1] == {**state, "status": "creating", "pid": os.getpid()}
    assert states[2] == {**state, "status": "running", "pid": os.getpid()}
    assert states[3] == {**state, "status": "stopped"}
    assert log.texts == []


async def test_a_failure_before_the_container_ends_its_creation(log: Warnings, notes: Path) -> None:
    bad = {"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}
    hooks = _hooks(log, {"prestart": [bad], "createRuntime": [_note(notes, "x")]})
    with pytest.raises(Internal, match="prestart hook /bin/sh: exit status 3: broken"):
        await hooks.before_create()
    assert not notes.exists()


async def test_later_failures_are_logged_and_the_rest_runs(log: Warnings, notes: Path) -> None:
    for kind in ("poststart", "poststop"):
        missing = {"path": "/nonexistent/hook"}
        hooks = _hooks(log, {kind: [missing, _note(notes, kind)]})
        await (hooks.after_start() if kind == "poststart" else hooks.after_stop())
        assert log.texts == [f"{kind} hook /nonexistent/hook: No such file or directory"]
        log.texts.clear()
    assert len(notes.read_text().splitlines()) == 2


async def test_one_that_takes_too_long_is_killed(log: Warnings, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}; exec sleep 1000"
    hooks = _hooks(log, {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script],
                                       "timeout": 1}]})  # fmt: skip
    with pytest.raises(DeadlineExceeded, match="took longer than 1 s"):
        await hooks.before_create()
    assert not os.path.exists(f"/proc/{pid.read_text().strip()}")


def test_a_relative_path_is_refused(log: Warnings) -> None:
    with pytest.raises(InvalidArgument, match="poststop hook 'hook': no absolute path"):
        _hooks(log, {"poststop": [{"path": "hook"}]})


async def test_no_hooks(log: Warnings) -> None:
    hooks = _hooks(log, {})
    await hooks.before_create()
    await hooks.after_stop()
    assert "prestart" not in hooks
