"""Pods by the sandbox API: from the message to a spec, and the mounts its containers get."""

from __future__ import annotations

from typing import Any

import pytest

from protos.containerd import sandbox_pb2
from protos.cri import sandbox_pb2 as cri
from shim.errors import InvalidArgument
from shim.oci.declared_pod import DeclaredPod, add_pod_mounts
from shim.oci.pod import pod_settings
from shim.oci.role import Role, container_role
from shim.translate_pod import CONFIG_TYPE, declared_pod


def declare(config: cri.PodSandboxConfig, **fields: Any) -> DeclaredPod:
    request = sandbox_pb2.CreateSandboxRequest(sandbox_id="s1", **fields)
    request.options.type_url = CONFIG_TYPE
    request.options.value = config.SerializeToString()
    return declared_pod(request)


CONFIG = cri.PodSandboxConfig(
    metadata={"name": "n", "namespace": "ns", "uid": "u"},
    hostname="web",
    dns_config={"servers": ["10.0.0.1", "10.0.0.2"], "searches": ["a", "b"], "options": ["x:1"]},
    annotations={"io.katapy.x": "1", "io.kubernetes.cri.sandbox-id": "forged"},
    linux={
        "cgroup_parent": "/kubepods/pod1",
        "sysctls": {"kernel.msgmax": "1"},
        "resources": {"cpu_quota": 100, "memory_limit_in_bytes": 4096},
    },
)


def test_a_declared_pod_reads_like_a_pause_container() -> None:
    pod = declare(CONFIG, netns_path="/run/netns/x", annotations={"io.katapy.y": "2"})
    assert container_role(pod.spec) is Role.SANDBOX
    settings = pod_settings(pod.spec)
    assert (settings.hostname, settings.sysctls) == ("web", {"kernel.msgmax": "1"})
    assert not settings.host_pid
    assert {"type": "network", "path": "/run/netns/x"} in pod.spec["linux"]["namespaces"]
    assert pod.spec["linux"]["cgroupsPath"] == "/kubepods/pod1/s1"
    assert pod.spec["annotations"]["io.kubernetes.cri.sandbox-id"] == "s1"
    assert pod.spec["annotations"]["io.kubernetes.cri.sandbox-memory"] == "4096"
    assert pod.spec["annotations"]["io.katapy.x"] == "1"
    assert pod.spec["annotations"]["io.katapy.y"] == "2"
    files = pod.files()
    assert files["/etc/hostname"] == "web\n"
    assert files["/etc/resolv.conf"] == (
        "search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions x:1\n"
    )


def test_host_namespaces_and_systemd_cgroups() -> None:
    config = cri.PodSandboxConfig(
        linux={
            "cgroup_parent": "/kubepods.slice/kubepods-pod1.slice",
            "security_context": {"namespace_options": {"pid": cri.NODE, "network": cri.NODE}},
        }
    )
    pod = declare(config)
    assert pod_settings(pod.spec).host_pid
    assert pod.spec["linux"]["cgroupsPath"] == "kubepods-pod1.slice:cri-containerd:s1"
    assert pod.spec["hostname"]
    assert all(space["type"] != "network" for space in pod.spec["linux"]["namespaces"])


def test_another_clients_options_are_not_looked_at() -> None:
    request = sandbox_pb2.CreateSandboxRequest(sandbox_id="s1")
    request.options.type_url = "other.Options"
    request.options.value = b"\xff"
    assert declared_pod(request).dns == ()


def test_unreadable_options() -> None:
    request = sandbox_pb2.CreateSandboxRequest(sandbox_id="s1")
    request.options.type_url = CONFIG_TYPE
    request.options.value = b"\xff"
    with pytest.raises(InvalidArgument, match="pod s1: unreadable config"):
        declared_pod(request)


FILES = {"/etc/hosts": "/r/hosts", "/etc/hostname": "/r/hostname"}
SHM = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]}


def places(spec: dict[str, Any]) -> dict[str, str]:
    return {mount["destination"]: mount["source"] for mount in spec["mounts"]}


def test_missing_mounts_are_added() -> None:
    own_hosts = {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"}
    spec: dict[str, Any] = {
        "mounts": [SHM, own_hosts],
        "root": {"readonly": True},
        "linux": {"namespaces": [{"type": "ipc", "path": "/proc/7/ns/ipc"}]},
    }
    add_pod_mounts(spec, FILES)
    assert places(spec) == {
        "/etc/hosts": "/kubelet/hosts",
        "/etc/hostname": "/r/hostname",
        "/dev/shm": "/dev/shm",
    }
    assert spec["mounts"][1]["options"] == ["rbind", "rprivate", "ro"]


def test_shm_is_shared_with_ipc_only() -> None:
    spec: dict[str, Any] = {"mounts": [SHM], "linux": {"namespaces": [{"type": "ipc"}]}}
    add_pod_mounts(spec, {})
    assert spec["mounts"] == [SHM]


def test_a_volume_on_shm_stays() -> None:
    volume = {"destination": "/dev/shm", "type": "bind", "source": "/volume"}
    spec: dict[str, Any] = {
        "mounts": [SHM, volume],
        "linux": {"namespaces": [{"type": "ipc", "path": "/proc/7/ns/ipc"}]},
    }
    add_pod_mounts(spec, {})
    assert spec["mounts"] == [volume]
