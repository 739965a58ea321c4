"""Roles, what a pod shares, and namespaces joined by the host's paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidArgument
from shim.oci.namespaces import SHARED_PID, Joined, joined_namespaces
from shim.oci.pod import DEFAULT_SHM_BYTES, PodSettings, name_own_machine, pod_settings
from shim.oci.role import Role, container_role

TYPE = "io.kubernetes.cri.container-type"
SANDBOX = {TYPE: "sandbox"}


@pytest.mark.parametrize(
    ("annotations", "role"),
    [
        ({}, Role.SINGLE),
        ({"io.kubernetes.cri.sandbox-id": "x"}, Role.SINGLE),
        (SANDBOX, Role.SANDBOX),
        ({TYPE: "container"}, Role.MEMBER),
        ({"io.kubernetes.cri-o.ContainerType": "sandbox"}, Role.SANDBOX),
        ({"io.kubernetes.docker.type": "podsandbox"}, Role.SANDBOX),
    ],
)
def test_role(annotations: dict[str, str], role: Role) -> None:
    assert container_role({"annotations": annotations}) is role


def test_unknown_role_names_the_annotation() -> None:
    with pytest.raises(InvalidArgument, match=f"{TYPE} is 'vm', expected one of container"):
        container_role({"annotations": {TYPE: "vm"}})


def test_a_pods_settings(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    (tmp_path / "shm").mkdir()
    resolv.write_text("search a.b\nnameserver 10.0.0.1\n")
    spec = {
        "hostname": "pod",
        "annotations": SANDBOX,
        "linux": {"sysctl": {"kernel.shm_rmid_forced": "1"}, "namespaces": [{"type": "pid"}]},
        "mounts": [
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            {"destination": "/dev/shm/", "type": "bind", "source": str(tmp_path / "shm")},
            {"destination": "/etc/resolv.conf", "source": str(resolv), "options": ["rbind"]},
        ],
    }
    settings = pod_settings(spec)
    assert settings.hostname == "pod"
    assert settings.dns == ("search a.b", "nameserver 10.0.0.1")
    assert settings.sysctls == {"kernel.shm_rmid_forced": "1"}
    assert settings.shm_bytes > 0
    assert not settings.host_pid


def test_a_pod_without_files_has_a_default_shm() -> None:
    mounts = [
        {"destination": "/dev/shm", "type": "bind", "source": "/no/such/shm"},
        {"destination": "/etc/resolv.conf", "type": "bind", "source": "/no/such/file"},
    ]
    settings = pod_settings({"annotations": SANDBOX, "mounts": mounts})
    assert (settings.shm_bytes, settings.dns) == (DEFAULT_SHM_BYTES, ())
    assert settings.host_pid, "a pause container without a pid namespace is on the machine's"


def test_a_single_container_keeps_its_own() -> None:
    settings = pod_settings({"linux": {"sysctl": {"net.core.somaxconn": "9"}, "namespaces": []}})
    assert (settings.sysctls, settings.shm_bytes, settings.host_pid) == ({}, 0, False)


def spec_joining(*paths: str) -> dict[str, Any]:
    kinds = [path.rpartition("/")[2] or "pid" for path in paths]
    spaces = [{"type": kind, "path": path} for kind, path in zip(kinds, paths, strict=True)]
    return {"linux": {"namespaces": [*spaces, {"type": "mount"}, {"type": "network", "path": "x"}]}}


def test_pod_namespaces_are_the_machines() -> None:
    spec = spec_joining("/proc/70/ns/ipc", "/proc/70/ns/uts", "/proc/70/ns/pid")
    joined = joined_namespaces(spec, pod_pid=70, containers={}, host_pid=False, in_pod=True)
    assert joined.paths == {"ipc": "/proc/1/ns/ipc", "uts": "/proc/1/ns/uts", "pid": SHARED_PID}
    assert joined.shared_pid


def test_host_pid_is_the_machines() -> None:
    joined = joined_namespaces(
        spec_joining("/proc/70/ns/pid"), pod_pid=70, containers={}, host_pid=True, in_pod=True
    )
    assert (joined.paths, joined.shared_pid) == ({"pid": "/proc/1/ns/pid"}, False)


def test_a_target_containers_pids() -> None:
    joined = joined_namespaces(
        spec_joining("/proc/81/ns/pid"),
        pod_pid=70,
        containers={81: "c1"},
        host_pid=False,
        in_pod=True,
    )
    assert joined.paths == {"pid": "/run/kata-containers/c1/pid-namespace"}
    assert not joined.shared_pid


@pytest.mark.parametrize("path", ["/proc/99/ns/pid", "/run/ns/pid", "/proc/70/ns/../ns/pid"])
def test_other_paths_are_the_pods_in_a_pod_only(path: str) -> None:
    spec = spec_joining(path)
    joined = joined_namespaces(spec, pod_pid=70, containers={}, host_pid=False, in_pod=True)
    assert joined.paths == {"pid": SHARED_PID}
    alone = joined_namespaces(spec, pod_pid=70, containers={}, host_pid=False, in_pod=False)
    assert alone.paths == {}


def test_namespaces_without_a_path_are_the_containers_own() -> None:
    joined = joined_namespaces(
        spec_joining(""), pod_pid=70, containers={}, host_pid=False, in_pod=True
    )
    assert joined == Joined({}, False)


@pytest.mark.parametrize(
    ("namespace", "own", "pods", "expected"),
    [
        ({"type": "uts"}, "", "pod", "pod"),
        ({"type": "uts"}, "", "", "localhost"),
        ({"type": "uts"}, "mine", "pod", "mine"),
        ({"type": "uts", "path": "/proc/7/ns/uts"}, "", "pod", None),
        ({"type": "ipc"}, "", "pod", None),
    ],
)
def test_a_machine_of_its_own_has_the_name_the_pod_began_with(
    namespace: dict[str, str], own: str, pods: str, expected: str | None
) -> None:
    spec: dict[str, Any] = {"linux": {"namespaces": [namespace]}}
    if own:
        spec["hostname"] = own
    name_own_machine(spec, PodSettings(hostname=pods))
    assert spec.get("hostname") == expected
