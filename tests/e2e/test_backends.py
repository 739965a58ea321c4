"""The same list for each VMM: QEMU, and Firecracker and Cloud Hypervisor.

The latter two are stand-ins, or the real ones where the environment names them
(``KATAPY_FIRECRACKER``, ``KATAPY_JAILER``, ``KATAPY_CLOUD_HYPERVISOR``). Each test prints
which it is, and at its end looks for what is left behind. Pods of CRI are in
``cri/test_backends.py``.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.backends import KINDS, VARIANTS, Backend, make_backend
from tests.support.ctr import RUN_TIMEOUT, Ctr
from tests.support.events import Events
from tests.support.pod_netns import Netns, join_by_veth, new_netns
from tests.support.processes import descendants, process
from tests.support.runtime_processes import kill_process
from tests.support.terminal import open_terminal

pytestmark = [pytest.mark.vm, pytest.mark.root]

Configured = Callable[[str], tuple[str, str]]
MIB = 1 << 20
VM_LOST = 255
DEATH_TIMEOUT = 15.0


@pytest.fixture
def backend(request: pytest.FixtureRequest, vhost_device_vsock: Path, tmp_path: Path) -> Backend:
    """The VMM that the test's parameter names."""
    return make_backend(request.param, tmp_path / "programs", vhost_device_vsock)


@pytest.fixture
def options(backend: Backend, configured: Configured) -> list[str]:
    """What ``ctr run`` is told for it."""
    return list(configured(backend.config))


@pytest.fixture
def pod(token: str) -> Iterator[Netns]:
    """The pod's network namespace, which a veth pair connects to the world's."""
    with new_netns(f"{token}-pod") as netns:
        yield netns


@pytest.fixture
def world(token: str, pod: Netns) -> Iterator[Netns]:
    """What the pod talks to."""
    with new_netns(f"{token}-world") as netns:
        join_by_veth(pod, netns)
        yield netns


each = pytest.mark.parametrize("backend", KINDS, indirect=True)


@pytest.mark.parametrize("backend", [*KINDS, *VARIANTS], indirect=True)
def test_run(options: list[str], ctr: Ctr) -> None:
    script = "uname -r; echo out; echo err >&2; echo data >/file; cat /file; exit 7"
    output = ctr.run("sh", "-c", script, options=options)
    assert output.code == 7, output.error
    assert output.text.splitlines()[0] != os.uname().release
    assert output.text.splitlines()[1:] == ["out", "data"]
    assert output.error.splitlines()[0] == "err"


@each
def test_one_container_in_all_its_ways(
    options: list[str], ctr: Ctr, events: Events, pod: Netns, world: Netns
) -> None:
    name = ctr.start("sleep", "1000", options=[*options, "--with-ns", f"network:{pod.path}"])

    # Exec: streams and a code, input of some size, output of a large one, a terminal.
    output = ctr.exec(name, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (output.code, output.text, output.error) == (3, "out", "err")
    data = os.urandom(MIB)
    output = ctr.exec(name, "sha256sum", stdin=data)
    assert output.text.split()[0] == hashlib.sha256(data).hexdigest()
    output = ctr.exec(name, "dd", "if=/dev/zero", "bs=1M", "count=64", timeout=120)
    assert len(output.stdout) == 64 * MIB
    argv = ctr.command("tasks", "exec", "--tty", "--exec-id", "t1", name, "sh")
    with open_terminal(argv, columns=90, rows=20) as terminal:
        terminal.write(b"tty && until stty size | grep '20 90'; do sleep 0.1; done; exit 3\n")
        terminal.read_until(b"20 90\r", timeout=RUN_TIMEOUT)
        assert terminal.wait(timeout=30) == 3

    # The network, either way.
    assert ctr.exec(name, "ping", "-c", "2", "-W", "5", "192.0.2.1").code == 0
    world.run("busybox", "ping", "-c", "2", "-W", "5", "192.0.2.2")
    world.run("busybox", "ping", "-c", "1", "-W", "5", "2001:db8::2")
    listener = world.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, ThreadPoolExecutor(1) as answering:
        listener.bind(("192.0.2.1", 7000))
        listener.listen()
        got = answering.submit(_answer, listener)
        script = "head -c 300000 /dev/zero | nc 192.0.2.1 7000 | wc -c"
        assert ctr.exec(name, "sh", "-c", script).text == "200000"
        assert got.result(DEATH_TIMEOUT) == 300000

    # The VMM, and what it has started, is in the pod's cgroup.
    vmm = process(ctr.pid(name))
    assert vmm is not None
    for item in [vmm, *descendants(vmm.pid)]:
        rows = Path(f"/proc/{item.pid}/cgroup").read_text().splitlines()
        assert any(row.endswith(f"/{ctr.namespace}/katapy_{name}") for row in rows), item

    ctr.ok("tasks", "kill", "--signal", "SIGKILL", name)
    events.wait_for(name, "/tasks/exit", timeout=DEATH_TIMEOUT, id=name, exit_status=137)
    ctr.remove_all()
    assert pod.links() == {"lo", "eth0"}


def _answer(listener: socket.socket) -> int:
    """Accept a connection, return how much the other end says, and say something long."""
    connection, _ = listener.accept()
    with connection:
        total = 0
        while total < 300000 and (data := connection.recv(65536)):
            total += len(data)
        connection.sendall(bytes(200000))
    return total


@each
def test_out_of_memory(options: list[str], ctr: Ctr, events: Events) -> None:
    words = ("dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
    name = ctr.start(*words, options=[*options, "--memory-limit", str(32 * MIB)])
    events.wait_for(name, "/tasks/exit", timeout=DEATH_TIMEOUT, id=name, exit_status=137)
    assert events.topics(name).index("oom") < events.topics(name).index("exit")


@each
def test_the_vmm_dies(options: list[str], ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000", options=options)
    vmm = process(ctr.pid(name))
    assert vmm is not None
    kill_process(vmm)
    events.wait_for(name, "/tasks/exit", timeout=DEATH_TIMEOUT, id=name, exit_status=VM_LOST)


@pytest.mark.parametrize("backend", ["firecracker", "jailed firecracker"], indirect=True)
def test_root_on_a_disk_of_the_snapshotter(
    options: list[str], ctr: Ctr, image: Path, series: str
) -> None:
    if series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    local = ["--local"] if series.startswith("2.") else []
    ctr.ok("images", "import", *local, "--snapshotter", "blockfile", image)
    script = "grep ' / ' /proc/mounts"
    output = ctr.run("sh", "-c", script, options=[*options, "--snapshotter", "blockfile"])
    assert output.code == 0, output.error
    assert " ext4 " in output.text
