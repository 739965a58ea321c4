"""A pod's figures and its management socket, asked with the standard library's HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.lib.runtime import Runtime
from shim.monitoring.exposition import parse
from tests.support.cri_daemon import NAMESPACE
from tests.support.pods import Kubelet

pytestmark = [pytest.mark.root, pytest.mark.vm]

MONITOR_TIMEOUT = "3"
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    connection: http.client.HTTPConnection, method: str, target: str, body: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Send a request; give status and content of the answer."""
    connection.request(method, target, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def figures(text: str) -> Figures:
    return {(s.name, frozenset(s.labels)): s.value for f in parse(text) for s in f.samples}


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def katapy(runtime: Runtime, *words: str) -> list[str]:
    return ["env", *(f"{k}={v}" for k, v in runtime.env.items()),
            sys.executable, "-m", "shim.cli.main", *words]  # fmt: skip


@contextmanager
def monitor(runtime: Runtime) -> Iterator[int]:
    """A running ``katapy monitor`` without any capability; gives its port."""
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command += katapy(runtime, "monitor", "--listen", "127.0.0.1:0", "--timeout", MONITOR_TIMEOUT)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().split()[-1])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_a_pods_figures(kubelet: Kubelet, runtime: Runtime) -> None:
    pod = kubelet.pod("told")
    member = pod.container("one", "sleep", "1000")
    state = Path(runtime.env["KATAPY_STATE_DIR"])
    link = state / NAMESPACE / pod.id / "shim-monitor.sock"
    path = link.resolve()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    connection = UnixConnection(path)

    # -- the shim's own answer --
    status, text = ask(connection, "GET", "/metrics")
    assert status == 200, text
    seen = figures(text)
    total = int(member.sh("awk '/^MemTotal/ { print $2 }' /proc/meminfo")) * 1024
    assert seen[of("kata_guest_meminfo", item="mem_total")] == total
    vmm = pod.info["pid"]
    threads = len(os.listdir(f"/proc/{vmm}/task"))
    assert abs(seen[of("kata_hypervisor_threads")] - threads) < 8
    assert seen[of("kata_hypervisor_proc_status", item="vmrss")] > 50 << 10
    assert seen[of("kata_shim_fds")] > 5
    assert seen[of("kata_shim_process_resident_memory_bytes")] > 10 << 20
    assert seen[of("kata_shim_rpc_durations_histogram_milliseconds_count", action="create")] == 2
    agents = "kata_shim_agent_rpc_durations_histogram_milliseconds_count"
    assert seen[of(agents, action="grpc.CreateContainerRequest")] == 1
    assert seen[of("kata_agent_process_resident_memory_bytes")] > 1 << 20
    received = of("kata_guest_netdev_stat", interface="eth0", item="sent_packets")
    assert received in seen
    assert any(name == "kata_hypervisor_netdev" for name, _ in seen)
    assert seen[of("kata_shim_pod_overhead_memory_in_bytes")] > 20 << 20
    seen = figures(ask(connection, "GET", "/metrics")[1])
    assert of("kata_shim_pod_overhead_cpu") in seen
    assert seen[of("kata_agent_scrape_count")] == 2

    # -- the rest of the socket --
    status, url = ask(connection, "GET", "/agent-url")
    assert (status, url.partition("://")[0] in ("unix", "vsock", "hvsock")) == (200, True)
    rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 81 -j DROP\nCOMMIT\n"
    assert ask(connection, "PUT", "/iptables", rules)[0] == 200
    assert "--dport 81" in ask(connection, "GET", "/iptables")[1]
    assert "--dport 81" not in ask(connection, "GET", "/ip6tables")[1]
    assert ask(connection, "PUT", "/iptables", "*nonsense\n")[0] == 400
    assert ask(connection, "GET", "/direct-volume/stats?path=/none")[0] == 404
    assert ask(connection, "POST", "/direct-volume/resize", "{}")[0] == 400
    assert ask(connection, "GET", "/nothing")[0] == 404
    assert ask(connection, "DELETE", "/metrics")[0] == 405
    assert ask(connection, "PUT", "/policy", "package policy")[0] == 501
    connection.close()

    # -- all of the host's --
    told = subprocess.run(
        katapy(runtime, "metrics", pod.id), capture_output=True, text=True, timeout=60, check=True
    )
    assert figures(told.stdout)[of("kata_guest_meminfo", item="mem_total")] == total
    names = {
        "sandbox_id": pod.id,
        "cri_name": pod.config.metadata.name,
        "cri_namespace": "tests",
        "cri_uid": pod.config.metadata.uid,
    }
    with monitor(runtime) as port:
        node = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        status, text = ask(node, "GET", "/metrics")
        assert status == 200, text
        seen = figures(text)
        assert seen[of("kata_guest_meminfo", item="mem_total", **names)] == total
        assert seen[of("kata_monitor_scrape_failed_count")] == 0
        assert pod.id in ask(node, "GET", "/sandboxes")[1].split()
        listed = json.loads(ask(node, "GET", "/sandboxes", None, {"Accept": "application/json"})[1])
        assert names.items() <= next(p for p in listed if p["sandbox_id"] == pod.id).items()
        assert ask(node, "GET", f"/agent-url?sandbox={pod.id}") == (200, f"{url}\n")
        assert ask(node, "GET", "/metrics?sandbox=nobody")[0] == 404
        only = ask(node, "GET", f"/metrics?sandbox={pod.id}&filter_family=kata_guest_load")[1]
        assert {name for name, _ in figures(only)} == {"kata_guest_load"}
        # A shim that hangs costs the others nothing but the time it is given.
        shim = next(p["shim_pid"] for p in listed if p["sandbox_id"] == pod.id)
        os.kill(shim, signal.SIGSTOP)
        try:
            status, text = ask(node, "GET", "/metrics")
        finally:
            os.kill(shim, signal.SIGCONT)
        assert status == 200
        assert figures(text)[of("kata_monitor_scrape_failed_count")] == 1
        assert pod.id not in text
        node.close()
    pod.remove()
    assert not path.exists()
    assert not link.is_symlink()
