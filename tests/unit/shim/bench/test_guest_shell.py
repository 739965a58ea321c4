"""The benchmark's shell in a guest, with a shell of this host."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from shim.bench.deadline import Deadline
from shim.bench.guest_shell import LOOP, GuestShell
from shim.errors import DeadlineExceeded, Internal


@pytest.fixture
def shell() -> Iterator[GuestShell]:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with ours, subprocess.Popen(["sh", "-c", LOOP], stdin=fd, stdout=fd) as process:
        theirs.close()
        yield GuestShell("guest", ours, Deadline(30))
        process.kill()


def test_each_line_gives_its_own_output(shell: GuestShell) -> None:
    assert shell.run("echo one; echo two >&2") == "one\ntwo"
    assert shell.run("true") == ""
    assert shell.run("cat; echo three") == "three", "a program must not eat the next lines"


def test_a_failure_is_told_with_its_output(shell: GuestShell) -> None:
    with pytest.raises(Internal, match=r"guest: .*exit status 3: bad"):
        shell.run("echo bad; (exit 3)")
    assert shell.run("echo on") == "on"


def test_waiting_has_an_end(shell: GuestShell) -> None:
    with pytest.raises(DeadlineExceeded, match="sleep 20"):
        shell.run("sleep 20", timeout=0.05)


def test_a_shell_that_ends_is_no_answer(shell: GuestShell) -> None:
    with pytest.raises(Internal, match="it ended during exit"):
        shell.run("exit 1")
