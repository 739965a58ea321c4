"""Many pods at once, and one that dies among them."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2 as pods
from tests.support.pods import Kubelet, Member, Pod, linux
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

OWN = linux(pid=pods.CONTAINER)
PODS = 10
AT_ONCE = 4
"""Pods whose VMs boot at a time: more would only wait for each other's processor time."""


def make(kubelet: Kubelet, number: int) -> tuple[Pod, list[Member]]:
    pod = kubelet.pod(f"many{number}", linux=OWN)
    members = [pod.container(name, "sleep", "1000", linux=OWN) for name in ("a", "b")]
    return pod, members


@pytest.mark.parametrize("time", ["first", "second"])
def test_ten_pods_of_two_containers(kubelet: Kubelet, time: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(lambda number: make(kubelet, number), range(PODS)))
        boots = pool.map(
            lambda member: member.sh("hostname; cat /proc/sys/kernel/random/boot_id"),
            [member for _pod, members in made for member in members],
        )
        answers = [tuple(answer.split()) for answer in boots]
        assert answers[0::2] == answers[1::2], "two containers of a pod are in one VM"
        assert [name for name, _boot in answers[0::2]] == [f"many{n}" for n in range(PODS)]
        assert len({boot for _name, boot in answers}) == PODS
        list(pool.map(lambda pair: pair[0].remove(), made))


def test_the_death_of_a_vm_is_its_pods_alone(kubelet: Kubelet) -> None:
    with ThreadPoolExecutor(2) as pool:
        (dying, lost), (living, kept) = pool.map(lambda n: make(kubelet, n), range(2))
    os.kill(dying.info["pid"], signal.SIGKILL)
    for member in lost:
        assert member.wait_exit(timeout=20).exit_code == 255
    eventually(lambda: dying.status().status.state == cri.SANDBOX_NOTREADY, "NOTREADY", timeout=20)
    assert living.status().status.state == cri.SANDBOX_READY
    assert [member.sh("echo alive") for member in kept] == ["alive", "alive"]
    dying.remove()
    living.remove()
