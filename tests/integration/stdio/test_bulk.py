"""Large streams between processes: a reader in a process of its own checks a digest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import trio

from shim.stdio.frames import STDOUT
from shim.stdio.relay import Relay
from shim.stdio.stdio import open_stdio
from shim.stdio.stream_channel import StreamChannel
from tests.unit.shim.stdio.guest_end import GuestEnd

READER = """
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as fifo:
    while data := fifo.read(1 << 18):
        digest.update(data)
print(digest.hexdigest())
"""


def start_reader(fifo: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, str(fifo)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_256_mib_arrive_with_their_digest(tmp_path: Path) -> None:
    fifo = tmp_path / "stdout"
    os.mkfifo(fifo)
    block = os.urandom(1 << 20)
    expected = hashlib.sha256()
    for number in range(256):
        expected.update(block[number:] + block[:number])
    with start_reader(fifo) as reader:
        assert reader.stdout is not None
        stdio = await open_stdio("", str(fifo), "", False, container_id="c", namespace="n")
        end = GuestEnd()
        async with Relay(stdio, StreamChannel(end, "c")) as relay:
            await end.output(STDOUT, (block[n:] + block[:n] for n in range(256)))
            end.finish()
            await relay.finish()
        await stdio.aclose()
        seen = await trio.to_thread.run_sync(reader.stdout.read)
    assert seen.strip() == expected.hexdigest()
