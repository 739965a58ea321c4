from __future__ import annotations

import os
import re
import select
from pathlib import Path

import pytest

from shim import log as logs
from shim.log import Log


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "log")
    return tmp_path / "log"


def test_lines_are_in_containerds_text_form(fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = Log(logs.open_fifo(str(fifo)), fields={"namespace": "k8s.io", "id": "c1"})
    log.warning('a "b"\nc\\', path="/run/x", text="two words", empty="", zero=0)
    line = os.read(reader, 65536).decode()
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" level=warning msg="a \\"b\\"\\nc\\\\"'
        r' path=/run/x text="two words" empty="" zero=0 namespace=k8s.io id=c1\n',
        line,
    )
    log.debug("not at this level")
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    log.close()
    os.close(reader)


def test_full_fifo_drops_lines_and_says_so_later(fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = Log(logs.open_fifo(str(fifo)))
    while not log.dropped:
        log.info("x" * 3000)
    log.info("x" * 3000)
    assert log.dropped == 2
    data = b""
    while select.select([reader], [], [], 0)[0]:
        data += os.read(reader, 65536)
    assert all(line.endswith(b"x") for line in data.splitlines())  # none was cut in two
    log.info("again")
    assert b"msg=again dropped=2" in os.read(reader, 65536)
    assert log.dropped == 0
    log.close()
    os.close(reader)


def test_daemon_that_went_away_is_no_error(fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = Log(logs.open_fifo(str(fifo)))
    os.close(reader)
    log.info("nobody reads")
    assert log.dropped == 0
    log.close()


def test_long_lines_stay_within_one_write(fifo: Path, tmp_path: Path) -> None:
    log = Log(-1, file=str(tmp_path / "file"))
    log.error("é" * 5000)
    log.close()
    data = (tmp_path / "file").read_bytes()
    assert len(data) <= select.PIPE_BUF
    assert data.endswith(b"...\n")
    assert data.decode()


def test_only_a_fifo_is_opened(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to("plain")
    for name in ("plain", "link", "none", "."):
        assert logs.open_fifo(str(tmp_path / name)) == -1
    Log(-1).error("goes nowhere")
