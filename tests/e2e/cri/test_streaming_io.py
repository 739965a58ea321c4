"""Stdio by streams that containerd opens to the shim (2.x, ``io_type = "streaming"``)."""

from __future__ import annotations

import hashlib

import pytest

from deploy.lib.containerd import Daemon
from protos.cri import sandbox_pb2 as pods
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux
from tests.support.waiting import eventually
from tests.support.websocket import STDERR, STDOUT

pytestmark = [pytest.mark.root, pytest.mark.vm]

OWN = linux(pid=pods.CONTAINER)
HANDLER = "katapy-streaming"
BULK = 4 << 20


@pytest.fixture(autouse=True)
def only_where_there_is_one(series: str) -> None:
    if not series.startswith("2."):
        pytest.skip(f"containerd {series} has no streaming I/O")


def test_logs_exec_and_attach_without_fifos(kubelet: Kubelet) -> None:
    pod = kubelet.pod("streaming", handler=HANDLER, linux=OWN)
    script = "echo err >&2; while read l; do echo got $l; done; echo end"
    one = pod.container("one", "sh", "-c", script, stdin=True, stdin_once=True, linux=OWN)
    one.wait_log("err", stream="stderr")
    assert one.sh("echo reached") == "reached"

    # Much, and none of it lost at the end.
    many = f"head -c {BULK} /dev/zero | tr '\\0' x; echo done >&2; exit 6"
    with one.exec(["sh", "-c", many], timeout=120) as stream:
        assert stream.finish() == 6
        expected = hashlib.sha256(b"x" * BULK).hexdigest()
        assert hashlib.sha256(stream.received[STDOUT]).hexdigest() == expected
        assert stream.received[STDERR] == b"done\n"
    with one.exec(["sh", "-c", "tty; read l; echo $l"], tty=True, stdin=True) as stream:
        stream.write(b"hello\n")
        assert stream.finish() == 0
        assert b"/dev/pts/0\r\n" in stream.received[STDOUT]

    with one.attach(stdin=True) as stream:
        stream.write(b"1\n")
        stream.read_until(b"got 1\n")
    # With stdin_once the end of the one attach is the end of stdin.
    assert one.wait_exit().exit_code == 0
    one.wait_log("end")
    # containerd stops reading once it knows of the exit.
    for name in ("last", "very-last"):
        last = pod.container(name, "sh", "-c", "seq 1 20000", linux=OWN)
        assert last.wait_exit().exit_code == 0
        last.wait_log("20000")
        assert [text for _, text in last.log] == [str(number) for number in range(1, 20001)]


def test_output_goes_on_when_the_daemon_is_back(kubelet: Kubelet, cri_daemon: Daemon) -> None:
    pod = kubelet.pod("again", handler=HANDLER, linux=OWN)
    # Open both ways, so that no writer's end is the end for the reader.
    script = "mkfifo /tmp/fifo; exec 3<>/tmp/fifo; while read l <&3; do echo got $l; done"
    one = pod.container("one", "sh", "-c", script, linux=OWN)
    one.sh("until test -p /tmp/fifo; do sleep 0.1; done; echo 1 > /tmp/fifo")
    one.wait_log("got 1")
    cri_daemon.stop()
    cri_daemon.start()

    def back() -> bool:
        try:
            return one.sh("echo 2 > /tmp/fifo; echo reached") == "reached"
        except CriError:
            return False

    eventually(back, "CRI to be back", timeout=30)
    one.wait_log("got 2")
