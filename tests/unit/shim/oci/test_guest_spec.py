from __future__ import annotations

import copy
from typing import Any

import pytest

from shim.errors import InvalidArgument
from shim.oci.guest_spec import EVERY_DEVICE, guest_cgroup, guest_process, guest_spec
from shim.oci.mounts import GUEST_SHM, host_mounts
from shim.oci.resources import GuestLimits, guest_resources
from tests.unit.shim.oci.specs import cri_container

SOURCES = {5: "/shared/c1-0-etc-hosts", 7: "/shared/c1-1-data"}
ROOTFS = "/run/kata-containers/shared/containers/c1/rootfs"


def build(spec: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "container_id": "c1",
        "rootfs_path": ROOTFS,
        "mount_sources": SOURCES,
        **options,
    }
    return guest_spec(spec or cri_container(), **arguments)


def mount(spec: dict[str, Any], destination: str) -> dict[str, Any]:
    return next(m for m in reversed(spec["mounts"]) if m["destination"] == destination)


def test_the_input_is_left_alone() -> None:
    spec = cri_container()
    before = copy.deepcopy(spec)
    result = build(spec)
    result["process"]["args"] = []
    result["linux"]["resources"]["cpu"].clear()
    assert spec == before


def test_only_real_host_paths_are_to_be_shared() -> None:
    found = host_mounts(cri_container())
    assert [(m.index, m.source, m.readonly, m.recursive) for m in found] == [
        (5, "/var/lib/kubelet/pods/u/etc-hosts", False, True),
        (7, "/mnt/data", True, False),
    ]
    assert found[1].propagation == ("rslave",)


def test_host_mounts_get_their_guest_paths() -> None:
    result = build()
    assert mount(result, "/etc/hosts")["source"] == SOURCES[5]
    data = mount(result, "/data")
    assert data["source"] == SOURCES[7]
    assert data["options"] == ["bind", "rslave", "ro"]
    assert "uidMappings" not in data


def test_an_unshared_host_mount_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="/data: /mnt/data is not shared"):
        build(mount_sources={5: "/x"})


def test_kernel_file_systems_are_the_guests_own() -> None:
    result = build()
    assert mount(result, "/host/proc")["source"] == "/proc"
    assert mount(result, "/host/cg")["type"] == "cgroup"
    assert "ro" in mount(result, "/host/cg")["options"]
    assert mount(result, "/sys/fs/cgroup")["type"] == "cgroup"


def test_dev_shm_is_the_pods_in_the_guest_if_bound_else_the_containers_own() -> None:
    result = build()
    assert mount(result, "/dev/shm/")["source"] == GUEST_SHM
    assert mount(result, "/dev/shm/")["options"] == ["rbind", "ro"]
    assert mount(result, "/dev/shm")["type"] == "tmpfs"


def test_a_relative_host_source_is_refused() -> None:
    spec = cri_container()
    spec["mounts"][5]["source"] = "etc-hosts"
    with pytest.raises(InvalidArgument, match="etc-hosts"):
        host_mounts(spec)


def test_namespaces_name_nothing_of_the_host() -> None:
    result = build(joined_namespaces={"ipc": "/guest/ipc"})
    assert result["linux"]["namespaces"] == [
        {"type": "pid"},
        {"type": "ipc", "path": "/guest/ipc"},
        {"type": "uts"},
        {"type": "mount"},
        {"type": "cgroup"},
        {"type": "network", "path": "/proc/1/ns/net"},
    ]


def test_a_kata_agent_gets_no_network_namespace() -> None:
    types = [n["type"] for n in build(network_path=None)["linux"]["namespaces"]]
    assert types == ["pid", "ipc", "uts", "mount", "cgroup"]


def test_a_host_name_needs_a_uts_namespace() -> None:
    assert build()["hostname"] == "pod-1"
    spec = cri_container()
    spec["linux"]["namespaces"] = [{"type": "pid"}, {"type": "mount"}]
    assert "hostname" not in build(spec)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("kubepods-pod1.slice:cri-containerd:c1", "/katapy/c1"),
        ("/kubepods/pod1/abc", "/katapy/abc"),
        ("/default/with:colon", "/katapy/with_colon"),
        ("", "/katapy/c1"),
        ("/", "/katapy/c1"),
        ("/a/..", "/katapy/c1"),
    ],
)
def test_cgroup_paths_are_flat_in_the_guest(path: str, expected: str) -> None:
    assert guest_cgroup(path, "c1") == expected


def test_host_devices_are_dropped_fixed_ones_kept_attached_ones_renumbered() -> None:
    result = build(devices={"/dev/xvda": (254, 16)})
    devices = {d["path"]: (d["major"], d["minor"]) for d in result["linux"]["devices"]}
    assert devices == {"/dev/null": (1, 3), "/dev/xvda": (254, 16)}
    rules = result["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "b", "major": 254, "minor": 16, "access": "rwm"} in rules


def test_device_rules_of_the_spec() -> None:
    spec = cri_container()

    def rule(kind: str, major: int, minor: int, *, allow: bool = True) -> dict[str, Any]:
        return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": "rw"}

    everything = {"allow": False, "access": "rwm"}
    asked = [
        everything,
        rule("c", -1, -1, allow=False),
        rule("c", 42, -1),
        rule("c", 10, 200),
        rule("c", 10, 57),  # a misc device's number is as the host's kernel came to it
        rule("b", 253, 7),  # /dev/xvda
        rule("b", 8, 0),
        rule("c", 511, 0),
    ]
    spec["linux"]["resources"]["devices"] = asked
    result = build(spec, devices={"/dev/xvda": (254, 16)})["linux"]["resources"]["devices"]
    assert result[:6] == [everything, everything, *asked[1:4], rule("b", 254, 16)]
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"} in result[6:]
    assert not {8, 511} & {one.get("major") for one in result}


def test_a_privileged_container_may_use_every_device() -> None:
    spec = cri_container()
    spec["linux"]["resources"]["devices"].append({"allow": True, "access": "rwm"})
    result = build(spec)
    assert result["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert result["annotations"][EVERY_DEVICE] == "true"
    assert {"type": "cgroup"} not in result["linux"]["namespaces"]  # sees the VM's
    assert EVERY_DEVICE not in build()["annotations"]
    spec = cri_container()
    spec["annotations"][EVERY_DEVICE] = "true"  # not for a client to say
    assert EVERY_DEVICE not in build(spec)["annotations"]


def test_resources_that_mean_the_same_in_the_guest_stay() -> None:
    limits = GuestLimits(("2MB",), io_weight=True)
    resources = build(limits=limits, cpus="0-1")["linux"]["resources"]
    resources.pop("devices")
    assert resources == {
        "memory": {"limit": 1 << 28, "swap": 1 << 28},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1"},
        "pids": {"limit": 100},
        "blockIO": {"weight": 10},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "1000"},
    }
    assert guest_resources({}) == {}


def test_limits_the_guest_lacks_are_dropped() -> None:
    assert GuestLimits.of_features(["hugetlb-2MB", "io-weight", "x"]) == GuestLimits(("2MB",), True)
    unified = {"io.weight": "default 50", "hugetlb.2MB.max": "0", "pids.max": "9"}
    asked = {"blockIO": {"weight": 10}, "unified": unified}
    assert guest_resources(asked) == {"unified": {"pids.max": "9"}}
    limits = GuestLimits(("2MB",), io_weight=True)
    assert guest_resources(asked, limits=limits) == asked
    per_device = {"unified": {"io.weight": "8:0 50"}}
    assert guest_resources(per_device, limits=limits) == {}


def test_what_belongs_to_the_host_is_dropped() -> None:
    result = build()
    assert "hooks" not in result
    spec = cri_container()
    spec["hooks"]["startContainer"] = [{"path": "/in/the/guest"}]
    assert build(spec)["hooks"] == {"startContainer": [{"path": "/in/the/guest"}]}
    assert not {"mountLabel", "intelRdt", "timeOffsets"} & result["linux"].keys()
    assert not {"apparmorProfile", "selinuxLabel"} & result["process"].keys()
    assert "username" not in result["process"]["user"]
    assert "listenerPath" not in result["linux"]["seccomp"]


def test_what_describes_the_process_stays() -> None:
    result, spec = build(), cri_container()
    for name in ("args", "env", "cwd", "capabilities", "noNewPrivileges"):
        assert result["process"][name] == spec["process"][name]
    for name in ("sysctl", "maskedPaths", "readonlyPaths", "rootfsPropagation"):
        assert result["linux"][name] == spec["linux"][name]
    assert result["root"] == {"path": ROOTFS, "readonly": True}


def test_limits_the_guest_kernel_would_refuse_are_clamped() -> None:
    process = build()["process"]
    assert process["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "hard": 1 << 20, "soft": 1024},
        {"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 0},
    ]
    assert process["oomScoreAdj"] == 0


def test_the_requests_terminal_wins() -> None:
    process = {"args": ["a"], "terminal": False, "consoleSize": {"width": 1, "height": 2}}
    assert guest_process(process, terminal=True)["terminal"] is True
    assert "consoleSize" in guest_process(process, terminal=True)
    assert "consoleSize" not in guest_process(process)


def test_seccomp_can_be_left_out() -> None:
    assert "seccomp" in build()["linux"]
    assert "seccomp" not in build(seccomp=False)["linux"]


def test_annotations_are_added_to() -> None:
    annotations = build(annotations={"a": "b"})["annotations"]
    assert annotations == {"io.kubernetes.cri.container-type": "container", "a": "b"}
