"""Containers of a pod: their lives, their logs, their counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2 as pods
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

OWN = linux(pid=pods.CONTAINER)


def test_lives_and_ends(kubelet: Kubelet, tmp_path: Path) -> None:
    client = kubelet.client
    pod = kubelet.pod("lives", linux=OWN, labels={"a": "b"}, annotations={"c": "d"})
    status = pod.status().status
    assert (dict(status.labels), dict(status.annotations)) == ({"a": "b"}, {"c": "d"})

    # Removed when only created, when running, when stopped; twice does no harm.
    created = pod.container("created", "sleep", "1000", start=False, linux=OWN)
    assert created.status().state == cri.CONTAINER_CREATED
    created.remove()
    running = pod.container(
        "running", "sleep", "1000", linux=OWN, labels={"e": "f"}, annotations={"g": "h"}
    )
    member = running.status()
    assert (dict(member.labels), dict(member.annotations)) == ({"e": "f"}, {"g": "h"})
    running.remove()
    script = "trap 'exit 9' TERM; echo ready; sleep 99 & wait"
    stopped = pod.container("stopped", "sh", "-c", script, linux=OWN)
    stopped.wait_log("ready")
    stopped.stop(grace=20)
    stopped.stop()
    assert (stopped.status().state, stopped.status().exit_code) == (cri.CONTAINER_EXITED, 9)
    stopped.remove()
    stopped.remove()
    assert not client.call("ListContainers", filter={"pod_sandbox_id": pod.id}).containers

    # A command that isn't there, one that ends at once, one whose exec takes too long.
    missing = pod.container("missing", "/no/such", start=False, linux=OWN)
    with pytest.raises(CriError, match="no/such"):
        missing.start()
    assert missing.status().state == cri.CONTAINER_EXITED
    quick = pod.container("quick", "sh", "-c", "seq 1 2000; exit 3", linux=OWN)
    assert quick.wait_exit().exit_code == 3
    assert [text for _stream, text in quick.log] == [str(n) for n in range(1, 2001)]

    steady = pod.container(
        "steady",
        *("sh", "-c", "while :; do echo tick; sleep 0.2; done"),
        linux=linux(pid=pods.CONTAINER, resources={"memory_limit_in_bytes": 128 << 20}),
    )
    with pytest.raises(CriError, match=r"(?i)deadline|timed out|timeout"):
        steady.try_exec("sleep", "77", timeout=2)
    eventually(lambda: "sleep 77" not in steady.sh("ps -o args"), "the exec's end", timeout=20)

    # The log goes on in a new file.
    log = Path(pod.config.log_directory) / "steady.log"
    log.rename(log.with_suffix(".1"))
    client.call("ReopenContainerLog", container_id=steady.id)
    eventually(lambda: log.exists() and "tick" in log.read_text(), "the new log", timeout=20)

    # Counters, of one and of all.
    stats = client.call("ContainerStats", container_id=steady.id).stats
    assert stats.attributes.metadata.name == "steady"
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert 0 < stats.memory.working_set_bytes.value < 128 << 20
    everyone = client.call("ListContainerStats", filter={"pod_sandbox_id": pod.id}).stats
    assert steady.id in {item.attributes.id for item in everyone}

    assert steady.id in {item.attributes.id for item in client.call("ListContainerStats").stats}
    labelled = pod.container("labelled", "sleep", "1000", linux=OWN, labels={"only": "me"})
    chosen = client.call("ListContainerStats", filter={"label_selector": {"only": "me"}}).stats
    assert [item.attributes.id for item in chosen] == [labelled.id]

    pod.stop()
    pod.stop()
    assert pod.status().status.state == cri.SANDBOX_NOTREADY
    pod.remove()
    client.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    client.call("StopPodSandbox", pod_sandbox_id="no-such-pod")
    client.call("StopContainer", container_id="no-such-container")
    client.call("RemoveContainer", container_id="no-such-container")


def test_a_container_that_eats_its_memory(kubelet: Kubelet) -> None:
    pod = kubelet.pod("hungry", linux=OWN)
    limits = linux(
        pid=pods.CONTAINER,
        resources={"memory_limit_in_bytes": 20 << 20, "memory_swap_limit_in_bytes": 20 << 20},
    )
    hungry = pod.container("hungry", "sh", "-c", "sleep 1; exec tail /dev/zero", linux=limits)
    other = pod.container("other", "sleep", "1000", linux=OWN)
    status = hungry.wait_exit(timeout=60)
    assert status.exit_code == 137
    eventually(lambda: hungry.status().reason == "OOMKilled", "the reason", timeout=20)
    assert other.sh("echo alive") == "alive"


@pytest.mark.vm
def test_a_root_file_system_is_not_left_to_its_processes(kubelet: Kubelet) -> None:
    """The agent has it mounted until the container is deleted, however its processes end.

    Seen by the first process of the shared pid namespace, whose mounts are the agent's.
    """
    shared = linux(pid=pods.POD)
    able = {**shared["security_context"], "capabilities": {"add_capabilities": ["ALL"]}}
    pod = kubelet.pod("roots", linux=shared)
    witness = pod.container("witness", "sleep", "1000", linux={**shared, "security_context": able})

    def roots() -> int:
        return int(witness.sh("grep -c ' virtiofs none ' /proc/1/mountinfo || true"))

    assert roots() == 1, "the witness's own is there"
    other = pod.container("other", "sleep", "1000", linux=shared)
    assert roots() == 2
    other.stop()
    eventually(lambda: roots() == 1, "the root is let go", timeout=20)
    for number in range(5):
        # Killed on its way to its program, with reads of it under way.
        killed = pod.container(f"killed-{number}", "sleep", "1000", linux=shared)
        killed.stop()
        assert killed.status().exit_code == 137
    eventually(lambda: roots() == 1, "the roots are let go", timeout=20)
    pod.remove()
