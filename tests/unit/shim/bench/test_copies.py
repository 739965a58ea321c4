"""What the throughput benchmark makes of dd's answers and of connections."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from shim.bench import wires
from shim.bench.copies import Cost, cpu_seconds, dd_command, fill, seconds_of
from shim.errors import Internal

SIZE = 3 << 20


def test_dd_command_copies_in_busybox_and_tells_how_long(tmp_path: Path) -> None:
    fill(tmp_path / "from", 3)
    line = dd_command(f"{tmp_path}/from", f"{tmp_path}/to", 3, "conv=notrunc")
    said = subprocess.run(["busybox", "sh", "-c", line], capture_output=True, text=True, check=True)
    assert 0 < seconds_of(said.stdout, 3) < 60
    assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()


def test_seconds_of_is_the_difference_of_the_clocks() -> None:
    said = "64+0 records in\n64+0 records out\nclock 1795545458.250000 1795545459.000000"
    assert seconds_of(said, 64) == 0.75


@pytest.mark.parametrize(
    "said",
    [
        "dd: can't open '/share/x': No such file or directory\nclock 1.0 2.0",
        "63+1 records in\n63+1 records out\nclock 1.0 2.0",
        "164+0 records in\n164+0 records out\nclock 1.0 2.0",
        "64+0 records in\n64+0 records out",
        "64+0 records in\n64+0 records out\nclock 1.0",
    ],
)
def test_a_copy_of_less_is_no_measurement(said: str) -> None:
    with pytest.raises(Internal, match="64 MiB"):
        seconds_of(said, 64)


def test_a_cost_is_never_nothing() -> None:
    assert Cost(5.0, 2.0).since(Cost(3.0, 1.5)) == (2.0, 0.5)
    assert min(Cost(1.0, 1.0).since(Cost(2.0, 2.0))) > 0


def test_cpu_seconds_counts_all_threads() -> None:
    before = cpu_seconds(os.getpid())
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    assert cpu_seconds(os.getpid()) - before >= 0.05


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def test_receive_stamps_what_follows_the_lead(listener: socket.socket) -> None:
    def client() -> None:
        with socket.create_connection(listener.getsockname()) as sock:
            sock.sendall(bytes(2 * SIZE))

    stamps = count()
    assert wires.receive(listener, client, SIZE, SIZE, lambda: next(stamps)) == (1, 2)


def test_receive_refuses_less(listener: socket.socket) -> None:
    def client() -> None:
        with socket.create_connection(listener.getsockname()) as sock:
            sock.sendall(bytes(2 * SIZE - 1))

    with pytest.raises(Internal, match="1 bytes too early"):
        wires.receive(listener, client, SIZE, SIZE, lambda: 0)


def test_send_ends_when_the_client_has_it_all(listener: socket.socket) -> None:
    got = 0

    def client() -> None:
        nonlocal got
        with socket.create_connection(listener.getsockname()) as sock:
            while data := sock.recv(1 << 16):
                got += len(data)

    begin, end = wires.send(listener, client, SIZE, SIZE, lambda: got)
    assert (begin <= SIZE, end) == (True, 2 * SIZE)


def test_what_the_client_says_comes_before_the_broken_connection(listener: socket.socket) -> None:
    listener.settimeout(0.01)

    def client() -> None:
        raise Internal("nc: can't connect")

    with pytest.raises(Internal, match="nc: can't connect"):
        wires.receive(listener, client, 0, 1, lambda: 0)
