from __future__ import annotations

import pytest

from protos.kata import oci_pb2
from shim.errors import InvalidArgument
from shim.oci.guest_spec import guest_spec
from shim.oci.kata_spec import kata_process, kata_resources, kata_spec
from tests.unit.shim.oci.specs import cri_container


def converted() -> oci_pb2.Spec:
    spec = guest_spec(
        cri_container(),
        container_id="c1",
        rootfs_path="/r",
        mount_sources={5: "/five", 7: "/seven"},
        network_path=None,
    )
    return kata_spec(spec)


def test_every_part_arrives() -> None:
    spec = converted()
    assert spec.Version == "1.0.2"
    assert spec.Process.User.UID == 1000
    assert list(spec.Process.User.AdditionalGids) == [10]
    assert list(spec.Process.Env) == ["PATH=/bin", "A=ü"]
    assert spec.Process.NoNewPrivileges
    assert spec.Process.Rlimits[1].Hard == 2**64 - 1
    assert list(spec.Process.Capabilities.Bounding) == ["CAP_CHOWN"]
    assert (spec.Root.Path, spec.Root.Readonly) == ("/r", True)
    assert spec.Mounts[5].source == "/five"
    assert spec.Annotations["io.kubernetes.cri.container-type"] == "container"
    assert spec.Linux.Resources.Memory.Limit == 1 << 28
    assert spec.Linux.Resources.CPU.Quota == 50000
    assert spec.Linux.Resources.Pids.Limit == 100
    assert spec.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert spec.Linux.CgroupsPath == "/katapy/c1"
    assert [n.Type for n in spec.Linux.Namespaces] == ["pid", "ipc", "uts", "mount", "cgroup"]
    assert spec.Linux.Devices[0].FileMode == 438
    syscall = spec.Linux.Seccomp.Syscalls[0]
    assert syscall.errnoret == 38
    assert syscall.WhichOneof("ErrnoRet") == "errnoret"
    assert syscall.Args[0].ValueTwo == 3


def test_it_survives_the_wire() -> None:
    spec = converted()
    assert oci_pb2.Spec.FromString(spec.SerializeToString()) == spec


def test_members_without_a_slot_are_left_out() -> None:
    process = kata_process({"args": ["a"], "ioPriority": {"class": "IOPRIO_CLASS_BE"}})
    assert list(process.Args) == ["a"]


def test_an_empty_object_is_present() -> None:
    assert kata_resources({"memory": {}}).HasField("Memory")


@pytest.mark.parametrize(
    ("process", "where"),
    [
        ({"cwd": 4}, r"process\.cwd"),
        ({"user": {"uid": -1}}, r"process\.user\.uid"),
        ({"user": {"uid": 2**33}}, r"process\.user\.uid"),
        ({"rlimits": [{"hard": "x"}]}, r"process\.rlimits\[0\]\.hard"),
        ({"user": []}, r"process\.user"),
    ],
)
def test_wrong_values_are_named(process: dict[str, object], where: str) -> None:
    with pytest.raises(InvalidArgument, match=where):
        kata_process(process)
