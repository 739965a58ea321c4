"""Which CPUs a VM's threads run on, and how likely the OOM killer takes them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from shim.log import Log
from shim.sizing.cpu_pinning import CpuPinning
from shim.sizing.oom_score import OomScore


class Lines:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def info(self, text: str) -> None:
        self.texts.append(text)

    warning = info


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def thread() -> Iterator[int]:
    """A thread that stands for a vCPU."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    done.set()
    thread.join()


def test_pinned_when_there_are_as_many_and_let_go_again(log: Lines, thread: int) -> None:
    everywhere = os.sched_getaffinity(0)
    cpu = max(everywhere)
    pinning = CpuPinning(cast(Log, log))
    pinning.apply([thread], {cpu, cpu + 1})
    assert os.sched_getaffinity(thread) == everywhere
    pinning.apply([thread], {cpu})
    assert os.sched_getaffinity(thread) == {cpu}
    pinning.apply([thread], ())
    assert os.sched_getaffinity(thread) == everywhere
    assert log.texts == [f"vCPUs are pinned to CPUs [{cpu}]", "unpinned"]


def test_cpus_that_are_not_there(log: Lines, thread: int) -> None:
    CpuPinning(cast(Log, log)).apply([thread], {9999})
    assert "not pinned to CPUs [9999]" in log.texts[0]


def test_the_best_protected_container_counts() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        file = Path(f"/proc/{process.pid}/oom_score_adj")
        score, pids = OomScore(), [process.pid, 1 << 22]
        base = int(file.read_text())
        score.admit("a", {"process": {"oomScoreAdj": base + 200}}, pids)
        score.admit("b", {"process": {"oomScoreAdj": base + 100}}, pids)
        score.admit("c", {"process": {}}, pids)
        after_b = int(file.read_text())
        score.release("b", pids)
        assert int(file.read_text()) == base + 200
        score.release("c", pids)
        score.release("a", pids)
        assert int(file.read_text()) == base + 200  # nobody left to say another
        process.kill()
    assert after_b in (base + 100, base + 200)  # lowering takes a capability
