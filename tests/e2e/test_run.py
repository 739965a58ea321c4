"""A container from start to end: `ctr run` in the foreground."""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.ctr import Ctr
from tests.support.events import Events

pytestmark = pytest.mark.root


@pytest.mark.core
@pytest.mark.vm
def test_kernel_is_the_guests(ctr: Ctr) -> None:
    output = ctr.run("uname", "-r")
    assert output.code == 0, output.error
    assert output.text
    assert output.text != os.uname().release


@pytest.mark.core
def test_exit_code_output_and_events(ctr: Ctr, events: Events) -> None:
    name = ctr.new_id()
    output = ctr.run("sh", "-c", "echo out; echo err >&2; exit 7", name=name)
    assert (output.code, output.text, output.error) == (7, "out", "err")
    exit_event = events.wait_for(name, "/tasks/exit", timeout=10, exit_status=7)
    assert exit_event.content["id"] == name
    assert exit_event.content["exited_at"]
    events.wait_for(name, "/tasks/delete", timeout=10, exit_status=7)
    assert events.topics(name) == ["create", "start", "exit", "delete"]


@pytest.mark.core
def test_stdin_reaches_the_process_and_its_end_too(ctr: Ctr) -> None:
    argv = ctr.run_command(ctr.new_id(), "cat", options=["--rm"])
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        # ctr forgets to pass the end of its input on if that comes before Create is done.
        assert process.stdout.readline() == b"one\n"
        rest, _ = process.communicate(b"two\n", timeout=30)
    assert (process.returncode, rest) == (0, b"two\n")


def test_large_input_arrives_whole(ctr: Ctr) -> None:
    data = os.urandom(64 << 20)
    output = ctr.run("sha256sum", stdin=data, timeout=300)
    assert output.code == 0, output.error
    assert output.text.split()[0] == hashlib.sha256(data).hexdigest()


def test_large_output_arrives_whole(ctr: Ctr, tmp_path: Path) -> None:
    # Made on the host: 256 MiB from the guest's own random source take it over a minute.
    total = hashlib.sha256()
    with (tmp_path / "random").open("wb") as file:
        for _ in range(256):
            block = os.urandom(1 << 20)
            total.update(block)
            file.write(block)
    mount = f"type=bind,src={tmp_path},dst=/volume,options=rbind:ro"
    output = ctr.run("cat", "/volume/random", options=["--mount", mount], timeout=400)
    assert output.code == 0, output.error
    assert len(output.stdout) == 256 << 20
    assert hashlib.sha256(output.stdout).hexdigest() == total.hexdigest()


def test_daemonised_grandchild_holds_nothing_back(ctr: Ctr) -> None:
    output = ctr.run("sh", "-c", "sleep 1000 & echo first; exit 4", timeout=60)
    assert (output.code, output.text) == (4, "first")


def test_environment_working_directory_and_mount(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host\n")
    mount = f"type=bind,src={tmp_path},dst=/volume,options=rbind:rw"
    output = ctr.run(
        "sh", "-c", "pwd; echo $COLOUR; cat /volume/given; echo back >/volume/answer",
        options=["--cwd", "/tmp", "--env", "COLOUR=blue", "--mount", mount],
    )  # fmt: skip
    assert output.code == 0, output.error
    assert output.text.splitlines() == ["/tmp", "blue", "from the host"]
    assert (tmp_path / "answer").read_text() == "back\n"


@pytest.mark.slow
def test_twenty_one_after_another(ctr: Ctr) -> None:
    for number in range(20):
        output = ctr.run("sh", "-c", f"exit {number}")
        assert output.code == number, output.error


def test_five_at_once(ctr: Ctr) -> None:
    with ThreadPoolExecutor(5) as pool:
        outputs = list(pool.map(lambda number: ctr.run("echo", str(number), timeout=180), range(5)))
    assert [(output.code, output.text) for output in outputs] == [
        (0, str(number)) for number in range(5)
    ], outputs
