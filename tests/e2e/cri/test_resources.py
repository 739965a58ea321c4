"""A pod's size through CRI: at its start, resized in place, and what its counters say."""

from __future__ import annotations

import pytest

from protos.cri import sandbox_pb2 as pods
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
