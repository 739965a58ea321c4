"""One pod that uses what pods use, on every containerd series."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2 as pods
from tests.support.cri_daemon import GATEWAY
from tests.support.pods import Kubelet, Pod, linux
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

OWN_PIDS = linux(pid=pods.CONTAINER)


def fetch(kubelet: Kubelet, host: str, port: int) -> str:
    """What a web server says to the node, without the head."""
    with kubelet.network.connect(host, port, timeout=20) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    return answer.partition(b"\r\n\r\n")[2].decode().strip()


def forwarded(pod: Pod, port: int) -> bytes:
    """What a web server says through port-forward."""
    with pod.port_forward(port) as stream:
        stream.write(b"GET / HTTP/1.0\r\n\r\n")
        stream.finish()
        return stream.received.get(0, b"")


@pytest.mark.core
def test_three_containers_share_one_pod(kubelet: Kubelet, tmp_path: Path) -> None:
    volume, config_map, secret = (tmp_path / name for name in ("volume", "config", "secret"))
    for folder in (volume, config_map, secret):
        folder.mkdir()
    (config_map / "key").write_text("value")
    (secret / "token").write_text("hidden")
    (secret / "token").chmod(0o400)
    (tmp_path / "link").symlink_to(volume)
    volumes = [
        {"container_path": "/volume", "host_path": str(volume)},
        {"container_path": "/etc/config", "host_path": str(config_map), "readonly": True},
        {"container_path": "/run/token", "host_path": str(secret / "token"), "readonly": True},
        {"container_path": "/linked", "host_path": str(tmp_path / "link")},
    ]
    limits = {"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100000}
    pod = kubelet.pod(
        "web",
        port_mappings=[{"container_port": 80, "host_port": 8081}],
        dns_config={"servers": ["10.1.2.3"], "searches": ["tests.local"], "options": ["ndots:3"]},
        linux={
            **linux(pid=pods.CONTAINER),
            "sysctls": {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "4000 5000"},
        },
    )
    one = pod.container("one", "sleep", "1000", linux=OWN_PIDS, mounts=volumes)
    two = pod.container(
        "two",
        *("sh", "-c", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"),
        linux=linux(pid=pods.CONTAINER, resources=limits),
        mounts=volumes[:1],
    )
    three = pod.container(
        "three", "sh", "-c", "echo out; echo err >&2; cat; exit 7", stdin=True, linux=OWN_PIDS
    )

    # The pod's own: host name, DNS, kernel settings, ipc and uts, and nobody else's pids.
    assert one.sh("hostname; cat /etc/hostname") == "web\nweb"
    assert one.sh("cat /etc/resolv.conf") == (
        "search tests.local\nnameserver 10.1.2.3\noptions ndots:3"
    )
    assert two.sh("cat /proc/sys/kernel/shm_rmid_forced") == "1"
    assert two.sh("cat /proc/sys/net/ipv4/ip_local_port_range") == "4000\t5000"
    for kind in ("ipc", "uts", "net"):
        assert one.sh(f"readlink /proc/self/ns/{kind}") == two.sh(f"readlink /proc/self/ns/{kind}")
    assert one.sh("readlink /proc/1/ns/pid") != two.sh("readlink /proc/1/ns/pid")
    assert one.sh("cat /proc/1/cmdline | tr '\\0' ' '") == "sleep 1000 "
    one.sh("echo shared > /dev/shm/file")
    assert two.sh("cat /dev/shm/file") == "shared"
    assert two.sh("df -k /dev/shm | tail -n1 | awk '{print $2}'") == "65536"

    # Files of the host, and limits.
    one.sh("echo one > /volume/from-one")
    assert two.sh("cat /volume/from-one; echo two > /volume/from-two") == "one"
    assert (volume / "from-two").read_text() == "two\n"
    assert one.sh("cat /linked/from-two") == "two"
    assert one.sh("cat /etc/config/key /run/token") == "valuehidden"
    assert one.try_exec("sh", "-c", "echo x > /etc/config/key").exit_code != 0
    if kubelet.handler != "runc":  # the guest has cgroups of version 2, whatever the host has
        own = "cd /sys/fs/cgroup$(sed s/0::// /proc/self/cgroup)"
        assert two.sh(f"{own}; cat memory.max cpu.max") == f"{64 << 20}\n50000 100000"

    # The network: a port of the node, the pod's address, each other.
    assert one.sh("wget -q -O - http://localhost/") == "web"
    assert fetch(kubelet, pod.ip, 80) == "web"
    assert fetch(kubelet, GATEWAY, 8081) == "web"
    assert GATEWAY in one.sh("ip route")
    eventually(lambda: forwarded(pod, 80).endswith(b"\r\n\r\nweb\n"), "port-forward", timeout=20)

    # One VM.
    kernel = one.sh("cat /proc/sys/kernel/random/boot_id")
    assert two.sh("cat /proc/sys/kernel/random/boot_id") == kernel

    # Exec with both streams and a code, attach, log.
    answer = one.try_exec("sh", "-c", "echo to-out; echo to-err >&2; exit 3")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"to-out\n", b"to-err\n", 3)
    three.wait_log("out")
    three.wait_log("err", stream="stderr")
    with three.attach(stdin=True) as stream:
        stream.write(b"typed\n")
        stream.read_until(b"typed\n")
    three.wait_log("typed")
    with one.exec(["sh"], tty=True, stdin=True) as session:
        session.resize(101, 31)
        session.write(b"stty size; exit 5\n")
        session.read_until(b"31 101")
        assert session.finish() == 5

    # An end is known with its code, and leaves the others alone.
    two.stop()
    assert two.status().exit_code == 137
    two.remove()
    assert one.sh("echo alive") == "alive"
    pod.stop()
    assert pod.status().status.state == cri.SANDBOX_NOTREADY
    assert one.status().state == cri.CONTAINER_EXITED
    pod.remove()
    # Nor does containerd complain of a shim that ended before it was told to.
    said = kubelet.daemon.log.read_text(errors="replace").splitlines()
    assert [line for line in said if "failed to shutdown shim" in line and pod.id in line] == []
