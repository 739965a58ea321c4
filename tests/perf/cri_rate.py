"""How long pods and containers take through CRI, on a containerd of the tests'.

    python -m tests.perf.cri_rate [--containerd 2.1]

Of each round it prints what a pod with one container takes from RunPodSandbox until it
runs, how much of it is not the wait for the agent's first answer, and what a second
container takes from CreateContainer until it runs.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from pathlib import Path

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.pods import Kubelet, linux

ROUNDS = 3
OWN = linux(pid=pods.CONTAINER)
_AGENT = re.compile(r"stages=.*?agent=\+(\d+)ms")


def agent_seconds(kubelet: Kubelet) -> float:
    """From the shim's start to its agent's first answer, of the last pod."""
    log = (kubelet.daemon.folder / "containerd.log").read_text()
    return int(_AGENT.findall(log)[-1]) / 1000


def test_rates(kubelet: Kubelet) -> None:
    overheads, seconds = [], []
    for _ in range(ROUNDS):
        started = time.monotonic()
        pod = kubelet.pod("rate", linux=OWN)
        pod.container("first", "sleep", "1000", linux=OWN)
        running = time.monotonic()
        pod.container("second", "sleep", "1000", linux=OWN)
        second = time.monotonic() - running
        whole, agent = running - started, agent_seconds(kubelet)
        print(f"pod runs after {whole:.2f} s, agent {agent:.2f} s; second one {second:.3f} s")
        overheads.append(whole - agent)
        seconds.append(second)
        pod.remove()
    print(f"median: {statistics.median(overheads):.2f} s over the agent's first answer,", end=" ")
    print(f"second container {statistics.median(seconds) * 1000:.0f} ms")


def main() -> int:
    options = sys.argv[1:] or ["--containerd", "1.7"]
    plugins = ["-p", "tests.e2e.conftest", "-p", "tests.e2e.cri.conftest"]
    quiet = ["-s", "-q", "-p", "no:cacheprovider"]
    return int(pytest.main([*plugins, *quiet, *options, str(Path(__file__))]))


if __name__ == "__main__":
    sys.exit(main())
