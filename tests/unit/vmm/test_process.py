from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import InvalidConfig, VmmError
from vmm.helper import run_helper, until_listening
from vmm.process import LineTail
from vmm.spawn import spawn


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_tail_does_not_depend_on_pieces(pieces: list[bytes]) -> None:
    whole, parts = LineTail(), LineTail()
    whole.feed(b"".join(pieces))
    for piece in pieces:
        parts.feed(piece)
    assert whole.snapshot() == parts.snapshot()


def test_tail_is_bounded() -> None:
    seen: list[str] = []
    tail = LineTail(seen.append)
    for number in range(1000):
        tail.feed(b"line %d\r\n" % number)
    tail.feed(b"x" * 1_000_000)
    assert len(seen) > 1000
    assert sum(map(len, tail.snapshot())) < 100_000
    tail.feed(b"\n\x1b[31mend\x00\xff")
    tail.finish()
    assert tail.lines[-1] == "?[31mend?\ufffd"


async def test_output_exit_code_and_environment() -> None:
    script = "import os,sys; print(sorted(os.environ), os.getcwd(), os.getsid(0) == os.getpid())"
    lines: list[str] = []
    async with run_helper(
        "helper",
        lambda: spawn([sys.executable, "-c", f"{script}; sys.exit(3)"]),
        sockets=(),
        on_line=lines.append,
    ) as process:
        with trio.fail_after(20):
            await process.exited.wait()
        assert process.returncode == 3
    assert lines == ["['LC_ALL', 'PATH'] / True"]


async def test_end_of_the_block_ends_the_daemon(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    socket.write_text("")
    recorded: list[tuple[str, str | int]] = []
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what fails
        async with run_helper(
            "sleeper",
            lambda: spawn(["sleep", "1000"]),
            sockets=(socket,),
            record=lambda kind, value: recorded.append((kind, value)),
        ) as process:
            assert process.returncode is None
            raise KeyError("mine")
    assert process.returncode == -signal.SIGKILL
    assert recorded == [("socket", str(socket)), ("process", process.pid)]
    assert not socket.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_cancellation_ends_the_daemon() -> None:
    with trio.move_on_after(0.05):
        async with run_helper("sleeper", lambda: spawn(["sleep", "1000"]), sockets=()) as process:
            await trio.sleep_forever()
    assert process.returncode == -signal.SIGKILL


async def test_a_status_someone_else_took_is_unknown() -> None:
    async with run_helper("sleeper", lambda: spawn(["sleep", "1000"]), sockets=()) as process:
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)  # noqa: ASYNC222 - it was just killed
        with trio.fail_after(5):
            await process.exited.wait()
        assert process.returncode is None


async def test_a_grandchild_does_not_hold_the_end_back() -> None:
    script = "sleep 1000 & echo $!"
    async with run_helper("sh", lambda: spawn(["sh", "-c", script]), sockets=()) as process:
        with trio.fail_after(5):
            await process.exited.wait()
        (line,) = process.tail.snapshot()
        os.kill(int(line), signal.SIGKILL)


async def test_waiting_for_a_daemon_that_dies(tmp_path: Path) -> None:
    script = "echo no way; exit 1"
    async with run_helper("daemon", lambda: spawn(["sh", "-c", script]), sockets=()) as process:
        with pytest.raises(VmmError, match="daemon ended at once: no way"):
            await until_listening(process, tmp_path / "never", 10)


def test_only_the_named_descriptors_are_passed() -> None:
    read, write = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)
    script = (
        f"import os; os.write({write}, str(sorted(map(int, os.listdir('/proc/self/fd')))).encode())"
    )
    with spawn([sys.executable, "-c", script], pass_fds=(write,)) as child:
        os.close(write)
        found = os.read(read, 1000)
        assert child.wait(20) == 0
    passed = eval(found)
    assert {0, 1, 2, write} <= set(passed)
    assert len(passed) == 5  # the fifth is the directory being listed
    for fd in (read, other):
        os.close(fd)


def test_missing_program() -> None:
    with pytest.raises(InvalidConfig, match="can't start /nonexistent: No such file"):
        spawn(["/nonexistent"])


def test_a_descriptor_that_is_no_namespace() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(VmmError, match="network namespace"):
        spawn(["true"], netns=fd)
    os.close(fd)
