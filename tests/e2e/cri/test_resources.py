"""A pod's size through CRI: at its start, resized in place, and what its counters say."""

from __future__ import annotations

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.cri_daemon import GATEWAY
from tests.support.pods import Kubelet, Member, linux
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

MIB = 1 << 20


def _memory(member: Member) -> int:
    return int(member.sh("grep MemTotal /proc/meminfo").split()[1]) // 1024


def _update(kubelet: Kubelet, member: Member, **resources: int) -> None:
    kubelet.client.call("UpdateContainerResources", container_id=member.id, linux=resources)


@pytest.mark.core
def test_sized_resized_and_counted(kubelet: Kubelet) -> None:
    asked = {"cpu_quota": 200_000, "cpu_period": 100_000, "memory_limit_in_bytes": 2500 * MIB}
    pod = kubelet.pod("sized", linux=linux(pid=pods.CONTAINER, resources=asked))
    limits = {"cpu_quota": 50_000, "cpu_period": 100_000, "memory_limit_in_bytes": 128 * MIB}
    member = pod.container(
        "member", "sleep", "1000", linux=linux(pid=pods.CONTAINER, resources=limits)
    )
    assert member.sh("nproc") == "2"
    before = _memory(member)
    assert before > 2500
    assert member.sh("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max").split() == [
        str(128 * MIB), "50000", "100000",
    ]  # fmt: skip

    _update(kubelet, member, memory_limit_in_bytes=3000 * MIB, cpu_quota=150_000)
    assert _memory(member) - before == pytest.approx(500 * 64 / 63, abs=8)
    assert member.sh("cat /sys/fs/cgroup/memory.max") == str(3000 * MIB)
    assert member.sh("cat /sys/fs/cgroup/cpu.max").split()[0] == "150000"
    _update(kubelet, member, memory_limit_in_bytes=128 * MIB)
    # As far as the guest can move its pages.
    eventually(lambda: _memory(member) < before + 300, "memory to be given back", timeout=40)
    assert member.sh("cat /sys/fs/cgroup/memory.max") == str(128 * MIB)

    member.sh("i=0; while [ $i -lt 9999 ]; do i=$((i+1)); done; echo x > /written")
    counted = kubelet.client.call("ContainerStats", container_id=member.id).stats
    assert counted.cpu.usage_core_nano_seconds.value > 10**7
    assert counted.memory.working_set_bytes.value > 0


@pytest.mark.core
def test_counters_of_the_pod(kubelet: Kubelet) -> None:
    pod = kubelet.pod("counted", linux=linux(pid=pods.CONTAINER))
    member = pod.container("member", "sleep", "1000", linux=linux(pid=pods.CONTAINER))
    member.sh(f"ping -c 2 -i 0.2 {GATEWAY}")
    stats = kubelet.client.call("PodSandboxStats", pod_sandbox_id=pod.id).stats
    # Those of the VM as the host sees it: its cgroup and its link.
    assert stats.linux.cpu.usage_core_nano_seconds.value > 10**8
    assert stats.linux.memory.working_set_bytes.value > 50 * MIB
    link = stats.linux.network.default_interface
    assert link.name == "eth0"
    assert link.rx_bytes.value > 100
    assert link.tx_bytes.value > 100
    assert (link.rx_errors.value, link.tx_errors.value) == (0, 0)
    # Those of its containers, from the guest.
    assert stats.linux.process.process_count.value >= 1
    assert [item.attributes.id for item in stats.linux.containers] == [member.id]
    assert stats.linux.containers[0].memory.working_set_bytes.value < 50 * MIB
    everyone = kubelet.client.call("ListPodSandboxStats").stats
    assert [item.attributes.id for item in everyone] == [pod.id]
