"""A log file that is closed while it is written to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from shim.stdio import pipes
from shim.stdio.pipes import FileSink


async def test_a_file_closed_meanwhile_gets_the_bytes_and_no_other_does(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = pipes._write_all
    writing, closed = threading.Event(), threading.Event()

    def late(fd: int, data: bytes | memoryview) -> None:
        writing.set()
        assert closed.wait(10)
        write_all(fd, data)

    monkeypatch.setattr(pipes, "_write_all", late)
    sink = FileSink(str(tmp_path / "log"))
    done = trio.Event()

    async def write() -> None:
        await sink.write(b"output")
        done.set()

    nursery.start_soon(write)
    await trio.to_thread.run_sync(writing.wait)
    sink.close()
    # Takes the number that was the sink's.
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    closed.set()
    await done.wait()
    os.close(other)
    assert (tmp_path / "log").read_bytes() == b"output"
    assert (tmp_path / "other").read_bytes() == b""
