"""Logging programs: real processes on real pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from shim.errors import DeadlineExceeded, Internal, InvalidArgument
from shim.stdio import logger
from shim.stdio.frames import STDERR, STDOUT
from shim.stdio.relay import Relay
from shim.stdio.stdio import open_stdio
from shim.stdio.stream_channel import StreamChannel
from tests.unit.shim.stdio.guest_end import GuestEnd

LOGGER = """#!/bin/sh
# $1 out $2 DIRECTORY
echo "args $*" > "$2/about"
env | grep -v -e PWD -e SHLVL -e ^_= | sort >> "$2/about"
ls /proc/self/fd | tr '\\n' ' ' >> "$2/about"
cat <&4 > "$2/stderr" 4<&4 5>&- &
echo 1 >&5
exec 5>&-
cat <&3 > "$2/stdout"
wait
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "logger"
    path.write_text(LOGGER)
    path.chmod(0o755)
    return path


def script(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport os, signal, time\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
async def test_a_logger_gets_all_output_and_ends_with_it(
    program: Path, tmp_path: Path, scheme: str
) -> None:
    # A single key, since the order of several is not ours to promise.
    uri = f"{scheme}://{program}?out={tmp_path}"
    stdio = await open_stdio("", uri, uri, False, container_id="c1", namespace="ns1")
    end = GuestEnd()
    payload = os.urandom(3 << 20)
    async with Relay(stdio, StreamChannel(end, "c1")) as relay:
        await end.attached.wait()
        await end.output(STDERR, [b"warning\n"])
        await end.output(STDOUT, [payload[: 1 << 20]])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.output, STDOUT, [payload[1 << 20 :]])
        end.finish()
        await relay.finish()
    await stdio.aclose()
    assert (tmp_path / "stdout").read_bytes() == payload
    assert (tmp_path / "stderr").read_bytes() == b"warning\n"
    about = (tmp_path / "about").read_text()
    assert about.startswith(f"args out {tmp_path}\n")
    assert "CONTAINER_ID=c1\nCONTAINER_NAMESPACE=ns1\n" in about
    got = {int(fd) for fd in about.splitlines()[-1].split()}
    # The shell holds its script and ls the directory; what the test run itself was
    # started with is not ours.
    given = {fd for fd in map(int, os.listdir("/proc/self/fd")) if _inheritable(fd)}
    assert {0, 1, 2, 3, 4, 5} <= got
    assert len(got - given - {0, 1, 2, 3, 4, 5}) <= 2


async def test_a_logger_is_on_record_for_as_long_as_it_runs(program: Path, tmp_path: Path) -> None:
    recorded: set[int] = set()

    def record(pid: int) -> Callable[[], None]:
        assert os.getsid(pid) == pid
        recorded.add(pid)
        return lambda: recorded.remove(pid)

    uri = f"binary://{program}?out={tmp_path}"
    stdio = await open_stdio("", uri, uri, False, container_id="c", namespace="n", record=record)
    assert len(recorded) == 1
    await stdio.aclose()
    assert recorded == set()


async def test_a_logger_that_can_not_be_recorded_is_ended(program: Path, tmp_path: Path) -> None:
    pids: list[int] = []

    def record(pid: int) -> Callable[[], None]:
        pids.append(pid)
        raise Internal("the disk is full")

    uri = f"binary://{program}?out={tmp_path}"
    with pytest.raises(Internal):
        await open_stdio("", uri, uri, False, container_id="c", namespace="n", record=record)
    assert not os.path.exists(f"/proc/{pids[0]}")


def _inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # the listing's own


async def test_a_logger_that_stays_is_terminated_then_killed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stubborn = script(
        tmp_path / "stubborn",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.close(5); time.sleep(1000)",
    )
    autojump_clock.autojump_threshold = 0.5  # let the real process get ready
    uri = f"binary://{stubborn}"
    stdio = await open_stdio("", uri, uri, False, container_id="c", namespace="n")
    process = stdio.logger
    assert process is not None
    began = trio.current_time()
    await stdio.aclose()
    assert trio.current_time() - began == pytest.approx(logger.EOF_GRACE + logger.TERM_GRACE)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    await stdio.aclose()


async def test_a_dead_logger_costs_the_output_only(tmp_path: Path) -> None:
    mortal = script(tmp_path / "mortal", "os.close(5); time.sleep(1000)")
    uri = f"binary://{mortal}"
    stdio = await open_stdio("", uri, uri, False, container_id="c", namespace="n")
    assert stdio.logger is not None
    os.kill(stdio.logger.pid, signal.SIGKILL)
    end = GuestEnd()
    async with Relay(stdio, StreamChannel(end, "c")) as relay:
        await end.attached.wait()
        await end.output(STDOUT, [bytes(4 << 20)])  # would block on a pipe nobody reads
        end.finish()
        await relay.finish()
    await stdio.aclose()


async def test_a_logger_that_ends_early_is_told_apart(tmp_path: Path) -> None:
    early = script(tmp_path / "early", "raise SystemExit(1)")
    with pytest.raises(InvalidArgument, match="early: ended before"):
        await open_stdio("", f"binary-v2://{early}", "", False, container_id="c", namespace="n")
    # The first version of the scheme takes the closed pipe for readiness.
    stdio = await open_stdio("", f"binary://{early}", "", False, container_id="c", namespace="n")
    await stdio.aclose()


async def test_a_logger_that_does_not_get_ready_is_ended(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.5
    lazy = script(tmp_path / "lazy", "time.sleep(1000)")
    with pytest.raises(DeadlineExceeded, match="lazy: not ready after 10 s"):
        await open_stdio("", f"binary://{lazy}", "", False, container_id="c", namespace="n")


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nothing-here: No such file"):
        await open_stdio(
            "", f"binary://{tmp_path}/nothing-here", "", False, container_id="c", namespace="n"
        )


async def test_two_programs_for_one_process_are_refused(program: Path, tmp_path: Path) -> None:
    uri = f"binary://{program}?out={tmp_path}"
    with pytest.raises(InvalidArgument, match="same logging program"):
        await open_stdio("", uri, uri + "&more=1", False, container_id="c", namespace="n")
