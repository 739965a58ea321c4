"""Signals, pausing, and a daemon that restarts under a running container."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from deploy.lib.containerd import Daemon
from tests.support.ctr import Ctr
from tests.support.events import Events, open_events
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@pytest.mark.core
def test_signal_is_delivered(ctr: Ctr, events: Events) -> None:
    script = "trap 'exit 33' USR1; echo ready; while :; do sleep 0.1; done"
    name = ctr.start("sh", "-c", script, options=["--log-uri", f"file://{ctr.daemon.folder}/t.log"])
    log = ctr.daemon.folder / "t.log"
    eventually(lambda: log.exists() and log.read_text(), "the trap", timeout=30)
    log.unlink()
    ctr.ok("tasks", "kill", "--signal", "SIGUSR1", name)
    events.wait_for(name, "/tasks/exit", timeout=15, exit_status=33)
    assert ctr.status(name) == "STOPPED"


def test_kill_gives_137(ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000")
    ctr.ok("tasks", "kill", "--signal", "SIGKILL", name)
    events.wait_for(name, "/tasks/exit", timeout=15, exit_status=137)


def test_killing_init_ends_its_execs(ctr: Ctr, events: Events, tmp_path: Path) -> None:
    name = ctr.start("sleep", "1000")
    # A detached ctr leaves its FIFOs where they are: not among those of the leak check.
    detached = ("--detach", "--fifo-dir", tmp_path, "--exec-id", "e1")
    ctr.ok("tasks", "exec", *detached, name, "sleep", "1000")
    ctr.ok("tasks", "kill", "--signal", "SIGKILL", name)
    events.wait_for(name, "/tasks/exit", timeout=15, id=name)
    exits = [event.content["id"] for event in events.of(name) if event.topic == "/tasks/exit"]
    assert exits == ["e1", name]


@pytest.mark.core
def test_pause_and_resume(ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000")
    ctr.ok("tasks", "pause", name)
    assert ctr.status(name) == "PAUSED"
    assert ctr.exec(name, "true").code != 0
    ctr.ok("tasks", "resume", name)
    assert ctr.status(name) == "RUNNING"
    assert ctr.exec(name, "true").code == 0
    assert events.topics(name)[:4] == ["create", "start", "paused", "resumed"]


@pytest.mark.core
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_daemon_restart_keeps_the_container(ctr: Ctr, daemon: Daemon, end: str) -> None:
    name = ctr.start("sh", "-c", "trap 'exit 21' TERM; while :; do sleep 0.1; done")
    pid = ctr.pid(name)
    if end == "killed":
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.stop()
    daemon.start()
    assert (ctr.status(name), ctr.pid(name)) == ("RUNNING", pid)
    assert ctr.exec(name, "echo", "reached").text == "reached"
    with open_events(ctr) as events:
        ctr.ok("tasks", "kill", "--signal", "SIGTERM", name)
        events.wait_for(name, "/tasks/exit", timeout=20, exit_status=21)


def test_exit_while_the_daemon_is_away(ctr: Ctr, daemon: Daemon) -> None:
    marker = daemon.folder / "away"
    marker.mkdir()
    name = ctr.start(
        "sh", "-c", "until [ -e /away/go ]; do sleep 0.1; done; exit 12",
        options=["--mount", f"type=bind,src={marker},dst=/away,options=rbind:rw"],
    )  # fmt: skip
    daemon.stop()
    (marker / "go").touch()
    daemon.start()
    eventually(lambda: ctr.status(name) == "STOPPED", "the exit to be known", timeout=20)
    # ctr of 1.7 reports the container's code as a warning, the others as their own code.
    output = ctr("tasks", "delete", name)
    assert output.code == 12 or "exit code 12" in output.error
    (marker / "go").unlink()
    marker.rmdir()
