"""One pod of CRI on each VMM, real or stand-in: two containers, a network, files of the node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lib.runtime import Runtime
from protos.cri import sandbox_pb2 as pods
from tests.support.backends import KINDS, Backend, make_backend
from tests.support.cri_daemon import GATEWAY
from tests.support.pods import Kubelet, linux
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

OWN_PIDS = linux(pid=pods.CONTAINER)
SEEN = 15.0


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, vhost_device_vsock: Path, tmp_path: Path, runtime: Runtime
) -> Iterator[Backend]:
    """The VMM that the test's parameter names, for all pods of the node meanwhile."""
    backend = make_backend(request.param, tmp_path / "programs", vhost_device_vsock)
    assert runtime.config is not None
    drop_in = runtime.config.parent / "config.d" / "backend.toml"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"{backend.config}\n")
    yield backend
    drop_in.unlink()


@pytest.mark.parametrize("backend", KINDS, indirect=True)
def test_two_containers_with_a_network(backend: Backend, kubelet: Kubelet, tmp_path: Path) -> None:
    config_map = tmp_path / "config"
    config_map.mkdir()
    (config_map / "key").write_text("value")
    log = tmp_path / "termination"
    log.touch()
    volumes = [
        {"container_path": "/etc/config", "host_path": str(config_map), "readonly": True},
        {"container_path": "/dev/termination-log", "host_path": str(log)},
    ]
    pod = kubelet.pod(
        "web",
        port_mappings=[{"container_port": 80, "host_port": 8082}],
        dns_config={"servers": ["10.1.2.3"], "searches": ["tests.local"]},
        linux=OWN_PIDS,
    )
    one = pod.container("one", "sleep", "1000", linux=OWN_PIDS, mounts=volumes)
    two = pod.container(
        "two",
        *("sh", "-c", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"),
        linux=OWN_PIDS,
    )
    assert one.sh("hostname; cat /etc/hostname /etc/resolv.conf") == (
        "web\nweb\nsearch tests.local\nnameserver 10.1.2.3"
    )
    assert one.sh("cat /etc/config/key") == "value"
    (config_map / "key").write_text("changed")
    eventually(lambda: one.sh("cat /etc/config/key") == "changed", "the change", timeout=SEEN)
    assert one.sh("echo last > /dev/termination-log; cat /dev/termination-log") == "last"
    if backend.shares:  # a copy's changes come when its container ends
        assert log.read_text() == "last\n"
    one.sh("echo shared > /dev/shm/file")
    assert two.sh("cat /dev/shm/file") == "shared"

    assert one.sh("wget -q -O - http://localhost/") == "web"
    fetch = ("busybox", "wget", "-q", "-O", "-")
    assert kubelet.network.output(*fetch, f"http://{pod.ip}/") == "web\n"
    assert kubelet.network.output(*fetch, f"http://{GATEWAY}:8082/") == "web\n"
    assert GATEWAY in one.sh("ip route")
    one.sh(f"ping -c 1 -W 5 {GATEWAY}")
    boot = "cat /proc/sys/kernel/random/boot_id"
    assert one.sh(boot) == two.sh(boot)

    answer = one.try_exec("sh", "-c", "echo to-out; echo to-err >&2; exit 3")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"to-out\n", b"to-err\n", 3)
    two.stop()
    assert two.status().exit_code == 137
    two.remove()
    # What the first container left is free again: a drive of Firecracker's, a name.
    script = "cat /dev/termination-log; echo again; echo why > /dev/termination-log; exit 4"
    again = pod.container("two", "sh", "-c", script, linux=OWN_PIDS, mounts=volumes)
    assert again.wait_exit().exit_code == 4
    assert log.read_text() == "why\n"  # where the kubelet looks once it knows of the end
    assert again.log == [("stdout", "last"), ("stdout", "again")]
    pod.remove()
