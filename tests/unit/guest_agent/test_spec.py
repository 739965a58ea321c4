from __future__ import annotations

from typing import Any

import pytest

from guest_agent.spec import oci_name, to_oci
from protos import lite
from protos.kata import oci_pb2
from protos.tables import kata_agent


def convert(**fields: Any) -> dict[str, Any]:
    encoded = oci_pb2.Spec(**fields).SerializeToString()
    return to_oci(lite.decode(kata_agent.Spec, encoded))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("UIDMappings", "uidMappings"),
        ("UID", "uid"),
        ("AdditionalGids", "additionalGids"),
        ("OOMScoreAdj", "oomScoreAdj"),
        ("NoNewPrivileges", "noNewPrivileges"),
        ("CPU", "cpu"),
        ("BlockIO", "blockIO"),
        ("KernelTCP", "kernelTCP"),
        ("HostID", "hostID"),
        ("L3CacheSchema", "l3CacheSchema"),
        ("ThrottleReadIOPSDevice", "throttleReadIOPSDevice"),
        ("Pagesize", "pageSize"),
        ("errnoret", "errnoRet"),
        ("Version", "ociVersion"),
        ("destination", "destination"),
        ("DisableOOMKiller", "disableOOMKiller"),
    ],
)
def test_names(field: str, name: str) -> None:
    assert oci_name(field) == name


def test_a_whole_spec() -> None:
    spec = convert(
        Version="1.0.2",
        Hostname="h",
        Annotations={"Some.Key": "Value"},
        Process={
            "Terminal": True,
            "ConsoleSize": {"Height": 24},
            "User": {"UID": 0, "AdditionalGids": [1, 2], "Username": "x"},
            "Args": ["sh", ""],
            "Capabilities": {"Bounding": ["CAP_CHOWN"]},
            "Rlimits": [{"Type": "RLIMIT_CORE"}],
        },
        Root={"Path": "/r", "Readonly": True},
        Linux={
            "UIDMappings": [{"Size": 5}],
            "Sysctl": {"net.ipv4.ip_forward": "1"},
            "Namespaces": [{"Type": "pid"}],
            "Devices": [{"Path": "/dev/x", "Type": "c", "Major": 1}],
            "Resources": {
                "Devices": [{"Allow": False, "Access": "rwm", "Major": -1}],
                "Memory": {"Limit": -1},
                "Pids": {"Limit": 7},
                "HugepageLimits": [{"Pagesize": "2MB", "Limit": 1}],
            },
            "Seccomp": {
                "DefaultAction": "SCMP_ACT_ERRNO",
                "Syscalls": [
                    {
                        "Names": ["bpf"],
                        "Action": "SCMP_ACT_ERRNO",
                        "errnoret": 1,
                        "Args": [{"Op": "SCMP_CMP_NE"}],
                    }
                ],
            },
        },
    )
    assert spec == {
        "ociVersion": "1.0.2",
        "hostname": "h",
        "annotations": {"Some.Key": "Value"},
        "process": {
            "terminal": True,
            "consoleSize": {"height": 24, "width": 0},
            "user": {"uid": 0, "gid": 0, "additionalGids": [1, 2]},
            "args": ["sh", ""],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        },
        "root": {"path": "/r", "readonly": True},
        "linux": {
            "uidMappings": [{"hostID": 0, "containerID": 0, "size": 5}],
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "namespaces": [{"type": "pid"}],
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 0}],
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": -1},
                "pids": {"limit": 7},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [
                    {
                        "names": ["bpf"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 1,
                        "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_NE"}],
                    }
                ],
            },
        },
    }
