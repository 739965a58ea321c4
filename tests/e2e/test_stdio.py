"""Terminals, attaching, and log URIs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.ctr import RUN_TIMEOUT, Ctr
from tests.support.events import Events
from tests.support.terminal import open_terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@pytest.mark.core
def test_terminal_has_the_size_and_follows_it(ctr: Ctr) -> None:
    argv = ctr.run_command(ctr.new_id(), "sh", options=["--rm", "--tty"])
    with open_terminal(argv, columns=101, rows=31) as terminal:
        # ctr tells the size only once the process runs, so each may arrive a little late.
        terminal.write(b"tty; until stty size | grep -q '31 101'; do sleep 0.1; done; echo A''B\n")
        assert b"/dev/" in terminal.read_until(b"AB", timeout=RUN_TIMEOUT)
        terminal.resize(77, 22)
        terminal.write(b"until stty size | grep -q '22 77'; do sleep 0.1; done; echo C''D\n")
        terminal.read_until(b"CD", timeout=30)
        terminal.write(b"exit 9\n")
        assert terminal.wait(timeout=30) == 9


def test_exec_on_a_terminal(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    argv = ctr.command("tasks", "exec", "--tty", "--exec-id", "t1", name, "sh")
    with open_terminal(argv, columns=90, rows=20) as terminal:
        terminal.write(b"tty && echo ye''s; exit 3\n")
        terminal.read_until(b"yes", timeout=30)
        assert terminal.wait(timeout=30) == 3


@pytest.mark.core
def test_detach_and_attach(ctr: Ctr) -> None:
    script = 'while read word; do echo "got $word"; [ "$word" = end ] && exit 5; done'
    name = ctr.start("sh", "-c", script)
    output = ctr("tasks", "attach", name, stdin=b"one\nend\n")
    assert (output.code, output.text) == (5, "got one\ngot end")


def test_attached_output_arrives_whole(ctr: Ctr) -> None:
    # The container waits for a word, because what it says before goes to the ctr that leaves.
    name = ctr.start("sh", "-c", "read go; seq 1 200000; exit 6")
    output = ctr("tasks", "attach", name, timeout=60, stdin=b"go\n")
    assert output.code == 6
    assert output.text.splitlines() == [str(number) for number in range(1, 200001)]


def test_log_into_a_file(ctr: Ctr, events: Events, tmp_path: Path) -> None:
    target = tmp_path / "logs" / "container.log"
    name = ctr.start(
        "sh", "-c", "echo out; echo err >&2; exit 2", options=["--log-uri", f"file://{target}"]
    )
    events.wait_for(name, "/tasks/exit", timeout=30, exit_status=2)
    assert sorted(target.read_text().splitlines()) == ["err", "out"]


def test_log_into_a_program(ctr: Ctr, events: Events, tmp_path: Path) -> None:
    program = tmp_path / "logger"
    program.write_text(
        "#!/bin/sh\n"
        # The shim says the end twice: by the pipes' end and by SIGTERM.
        "trap '' TERM\n"
        'env | grep ^CONTAINER_ | sort >"$2/environment"\n'
        "exec 5>&-\n"
        'cat <&3 >"$2/stdout" &\n'
        'cat <&4 >"$2/stderr" &\n'
        "wait\n"
        'touch "$2/done"\n'
    )
    program.chmod(0o755)
    name = ctr.start(
        "sh", "-c", "seq 1 5000; echo err >&2",
        options=["--log-uri", f"binary://{program}?folder={tmp_path}"],
    )  # fmt: skip
    events.wait_for(name, "/tasks/exit", timeout=30, exit_status=0)
    ctr.remove(name)
    eventually((tmp_path / "done").exists, "the log program's end", timeout=15)
    assert (tmp_path / "stdout").read_text().split() == [str(n) for n in range(1, 5001)]
    assert (tmp_path / "stderr").read_text() == "err\n"
    assert (tmp_path / "environment").read_text().splitlines() == [
        f"CONTAINER_ID={name}",
        f"CONTAINER_NAMESPACE={ctr.namespace}",
    ]


def test_a_slow_reader_loses_nothing(ctr: Ctr) -> None:
    name = ctr.new_id()
    argv = ctr.run_command(name, "seq", "1", "1200000", options=["--rm"])
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        # 8 MiB are more than all buffers on the way hold, so the container must be waiting.
        assert ctr.status(name) == "RUNNING"
        rest, _ = process.communicate(timeout=RUN_TIMEOUT)
    assert process.returncode == 0
    assert rest == b"".join(b"%d\n" % number for number in range(2, 1200001))
