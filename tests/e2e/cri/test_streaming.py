"""Streams through the CRI's own server: what goes in and out, and how they end."""

from __future__ import annotations

import hashlib

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.pods import Kubelet, linux
from tests.support.websocket import STDERR, STDOUT

pytestmark = pytest.mark.root

OWN = linux(pid=pods.CONTAINER)
BULK = 4 << 20


def test_exec_attach_and_their_ends(kubelet: Kubelet) -> None:
    pod = kubelet.pod("streams", linux=OWN)
    one = pod.container("one", "sh", "-c", "while read l; do echo got $l; done; sleep 1000",
                        stdin=True, linux=OWN)  # fmt: skip
    with one.exec(["sh", "-c", "echo out; echo err >&2; exit 6"]) as stream:
        assert stream.finish() == 6
        assert stream.received[STDOUT] == b"out\n"
        assert stream.received[STDERR] == b"err\n"

    # Much, and none of it lost at the end.
    script = f"head -c {BULK} /dev/zero | tr '\\0' x; echo done >&2"
    with one.exec(["sh", "-c", script], timeout=120) as stream:
        assert stream.finish() == 0
        expected = hashlib.sha256(b"x" * BULK).hexdigest()
        assert hashlib.sha256(stream.received[STDOUT]).hexdigest() == expected
        assert stream.received[STDERR] == b"done\n"

    # Two attached at once see the same; one that leaves takes nothing with it. Over a
    # WebSocket containerd ends an attach without stdin at once, with any runtime.
    with one.attach(stdin=True) as first, one.attach(stdin=True) as second:
        first.write(b"1\n")
        first.read_until(b"got 1\n")
        second.read_until(b"got 1\n")
    with one.attach(stdin=True) as again:
        again.write(b"2\n")
        again.read_until(b"got 2\n")
    one.wait_log("got 2")
