"""Which processes a pod's containers see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.pods import Kubelet, Member, linux
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


def commands(member: Member) -> set[str]:
    """The commands that a container's ps shows, without ps itself."""
    lines = member.try_exec("ps", "-o", "args").stdout.decode().splitlines()[1:]
    return set(lines) - {"ps -o args"}


def commands_with(member: Member, *wanted: str) -> set[str]:
    """The same once the wanted ones are among them.

    A start is answered when init goes on to its program; until it has, and on a busy host
    that takes a while, ps shows the runtime's name for it.
    """
    seen: set[str] = set()

    def there() -> bool:
        seen.clear()
        seen.update(commands(member))
        return seen >= set(wanted)

    eventually(there, f"{wanted} in ps", timeout=20)
    return seen


def test_processes_are_shared_as_asked(kubelet: Kubelet) -> None:
    shared = linux(pid=pods.POD)
    pod = kubelet.pod("shared", linux=shared)
    one = pod.container("one", "sleep", "1001", linux=shared)
    two = pod.container("two", "sleep", "1002", linux=shared)
    seen = commands_with(one, "sleep 1001", "sleep 1002")
    assert commands(two) == seen
    assert len(seen) == 3, "besides the two there is the process that holds the namespace"
    # By name, a process finds its like among the containers', and not that one.
    assert len(one.sh("pidof sleep").split()) == 2
    # It stays when the one that was there first goes, and orphans don't stay as zombies.
    one.stop()
    one.remove()
    two.sh("(sleep 0.1 & ) ; sleep 0.5; ! ps -o stat | grep -q Z")
    three = pod.container("three", "sleep", "1003", linux=shared)
    commands_with(three, "sleep 1002", "sleep 1003")
    pod.remove()


def test_a_debug_container_sees_its_targets_processes(kubelet: Kubelet) -> None:
    own = linux(pid=pods.CONTAINER)
    pod = kubelet.pod("debugged", linux=own)
    other = pod.container("other", "sleep", "1001", linux=own)
    target = pod.container("target", "sleep", "1002", linux=own)
    debug = pod.container("debug", "sleep", "1003", linux=linux(pid=pods.TARGET, target=target.id))
    both = {"sleep 1002", "sleep 1003"}
    assert commands_with(debug, *both) == both
    assert commands(target) == {"sleep 1002", "sleep 1003"}
    assert commands(other) == {"sleep 1001"}
    assert debug.sh("cat /proc/1/root/etc/hostname") == "debugged"
    target.stop()
    assert debug.wait_exit().exit_code == 137, "its pid namespace ended with the target"


def test_host_namespaces_are_the_machines(kubelet: Kubelet) -> None:
    host = linux(pid=pods.NODE, ipc=pods.NODE)
    options = host["security_context"]["namespace_options"]
    options["userns_options"] = {"mode": pods.NODE}
    pod = kubelet.pod("host", linux=host)
    one = pod.container("one", "sleep", "1001", linux=host)
    two = pod.container("two", "sleep", "1002", linux=host)
    commands_with(one, "sleep 1001", "sleep 1002")
    commands_with(two, "[kthreadd]")
    assert one.sh("cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]
    one.sh("echo hello > /dev/shm/shared")
    assert two.sh("cat /dev/shm/shared; rm /dev/shm/shared") == "hello"
    # The machine is the VM, not the host.
    assert (
        one.sh("cat /proc/sys/kernel/random/boot_id")
        != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    )


def test_each_container_has_a_host_pid_in_the_pods_network(kubelet: Kubelet) -> None:
    own = linux(pid=pods.CONTAINER)
    pod = kubelet.pod("pids", linux=own)
    members = [pod.container(name, "sleep", "1000", linux=own) for name in ("one", "two")]
    pids = [member.pid for member in members]
    assert len({pod.info["pid"], *pids}) == 3
    spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in (pod.info["pid"], *pids)}
    assert len(spaces) == 1
    assert spaces != {os.readlink("/proc/self/ns/net")}
    members[0].stop()
    members[0].remove()
    assert not Path(f"/proc/{pids[0]}").exists()
