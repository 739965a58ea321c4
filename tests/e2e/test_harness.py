"""The harness itself, with runc: what the other tests rely on must be able to fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deploy.lib.containerd import Daemon
from tests.support.ctr import Ctr
from tests.support.events import Events
from tests.support.leaks import Scope, assert_nothing_left, leaked, snapshot

RUNC = "io.containerd.runc.v2"

pytestmark = pytest.mark.root


@pytest.fixture
def runc(ctr: Ctr) -> Ctr:
    return Ctr(ctr.daemon, ctr.namespace, RUNC)


@pytest.mark.core
def test_run_gives_output_and_exit_code(runc: Ctr) -> None:
    output = runc.run("sh", "-c", "echo out; echo err >&2; exit 7", name="harness-run")
    assert (output.code, output.text, output.error) == (7, "out", "err")


@pytest.mark.core
def test_events_are_complete_and_ordered(runc: Ctr, events: Events) -> None:
    runc.run("true", name="harness-events")
    events.wait_for("harness-events", "/tasks/exit", timeout=10, exit_status=0)
    # runc's shim of containerd 2.1 now and then ends before it has sent the last event.
    assert events.topics("harness-events")[:3] == ["create", "start", "exit"]


def test_leak_check_sees_each_kind(runc: Ctr, leak_scope: Scope, tmp_path: Path) -> None:
    before = snapshot(leak_scope)
    runc.start("sleep", "100", name="harness-leak")
    kinds = {line.split(":")[0] for line in leaked(before, snapshot(leak_scope))}
    assert {"process", "mount", "socket", "cgroup", "file"} <= kinds
    with pytest.raises(AssertionError, match="harness-leak"):
        assert_nothing_left(leak_scope, before, timeout=0)
    runc.remove("harness-leak")
    assert_nothing_left(leak_scope, before)


def test_leak_check_sees_a_daemonised_process(leak_scope: Scope) -> None:
    before = snapshot(leak_scope)
    subprocess.run(["sh", "-c", "setsid sleep 99.5 >/dev/null 2>&1 &"], check=True)
    (line,) = leaked(before, snapshot(leak_scope))
    assert "sleep 99.5" in line
    subprocess.run(["kill", line.split()[1]], check=True)
    assert_nothing_left(leak_scope, before)


@pytest.mark.core
def test_container_survives_a_daemon_restart(runc: Ctr, daemon: Daemon) -> None:
    name = runc.start("sleep", "100", name="harness-restart")
    pid = runc.pid(name)
    daemon.stop()
    daemon.start()
    assert (runc.status(name), runc.pid(name)) == ("RUNNING", pid)
