"""Pods by the sandbox API: containerd 2.x, ``sandboxer = "shim"``, no pause container."""

from __future__ import annotations

import os
import signal

import pytest

from deploy.lib.containerd import Daemon
from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2 as pods
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.core, pytest.mark.vm]

OWN = linux(pid=pods.CONTAINER)
HANDLER = "katapy-sandbox"


@pytest.fixture(autouse=True)
def only_where_there_is_one(series: str) -> None:
    if not series.startswith("2."):
        pytest.skip(f"containerd {series} has no sandbox API for shims")


def test_a_pod_without_a_pause_container(kubelet: Kubelet) -> None:
    pod = kubelet.pod(
        "api",
        handler=HANDLER,
        dns_config={"servers": ["10.1.2.3"], "searches": ["tests.local"]},
        linux={**OWN, "sysctls": {"kernel.shm_rmid_forced": "1"}},
    )
    assert pod.status().status.state == cri.SANDBOX_READY
    one = pod.container("one", "sleep", "1000", linux=OWN)
    two = pod.container("two", "sleep", "1000", linux=linux(pid=pods.POD))
    assert one.sh("hostname; cat /etc/hostname") == "api\napi"
    assert one.sh("cat /etc/resolv.conf") == "search tests.local\nnameserver 10.1.2.3"
    assert "localhost" in one.sh("cat /etc/hosts")
    assert one.sh("cat /proc/sys/kernel/shm_rmid_forced") == "1"
    one.sh("echo shared > /dev/shm/file")
    assert two.sh("cat /dev/shm/file") == "shared"
    assert two.sh("df -k /dev/shm | tail -n1 | awk '{print $2}'") == "65536"
    assert pod.ip in one.sh("ip -4 addr show eth0")
    one.stop()
    assert one.status().exit_code == 137
    one.remove()
    pod.stop()
    pod.stop()
    assert pod.status().status.state == cri.SANDBOX_NOTREADY
    assert two.status().state == cri.CONTAINER_EXITED
    pod.remove()


def test_the_daemon_finds_it_again(kubelet: Kubelet, cri_daemon: Daemon) -> None:
    pod = kubelet.pod("again", handler=HANDLER, linux=OWN)
    one = pod.container("one", "sleep", "1000", linux=OWN)
    cri_daemon.stop()
    cri_daemon.start()

    def back() -> bool:
        try:
            return one.sh("echo reached") == "reached"
        except CriError:
            return False

    eventually(back, "CRI to be back", timeout=30)
    assert pod.status().status.state == cri.SANDBOX_READY
    two = pod.container("two", "sh", "-c", "exit 4", linux=OWN)
    assert two.wait_exit().exit_code == 4


def test_the_end_of_its_vm_is_known(kubelet: Kubelet) -> None:
    pod = kubelet.pod("dying", handler=HANDLER, linux=OWN)
    one = pod.container("one", "sleep", "1000", linux=OWN)
    os.kill(pod.info["pid"], signal.SIGKILL)
    assert one.wait_exit(timeout=20).exit_code == 255
    eventually(lambda: pod.status().status.state == cri.SANDBOX_NOTREADY, "NOTREADY", timeout=20)
