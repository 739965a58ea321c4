"""Which mounts of a spec need a path of the host, and how they are to be shown."""

from __future__ import annotations

from typing import Any

import pytest

from shim.oci.mounts import follow_guest, guest_mounts, host_mounts, is_pod_shm

VOLUMES = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s/shm", True),
        ("/var/lib/docker/containers/c/mounts/shm", True),
        ("/dev/shm", True),
        (f"{VOLUMES}/dshm", False),
        (f"{VOLUMES}/shm", False),
        ("/var/lib/kubelet/pods/u/volume-subpaths/v/c/0/shm", False),
        ("/data", False),
    ],
)
def test_the_pods_shared_memory_is_told_from_a_volume(source: str, expected: bool) -> None:
    mount = {"destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind"]}
    assert is_pod_shm(mount) is expected
    found = host_mounts({"mounts": [mount]})
    assert [entry.source for entry in found] == ([] if expected else [source])


def test_a_socket_of_the_host_may_come_under_a_type_of_its_own() -> None:
    spec = {"mounts": [{"destination": "/run/x.sock", "type": "uds", "source": "/tmp/x.sock"}]}
    assert [entry.source for entry in host_mounts(spec)] == ["/tmp/x.sock"]
    assert guest_mounts(spec, {0: "/g/x"}) == [
        {"destination": "/run/x.sock", "type": "bind", "source": "/g/x", "options": ["rbind"]}
    ]


def test_an_id_mapped_mount_is_mapped_on_the_host_alone() -> None:
    maps = [{"containerID": 0, "hostID": 70000, "size": 65536}]
    mount = {"destination": "/v", "type": "bind", "source": "/v", "options": ["rbind"]}
    spec = {"mounts": [{**mount, "uidMappings": maps, "gidMappings": maps}]}
    (found,) = host_mounts(spec)
    assert found.uid_maps == found.gid_maps == ((0, 70000, 65536),)
    (inside,) = guest_mounts(spec, {0: "/g/v"})
    assert inside == {**mount, "source": "/g/v"}


def test_read_only_all_the_way_down_is_the_hosts_to_keep() -> None:
    spec = {
        "mounts": [
            {"destination": "/v", "type": "bind", "source": "/v", "options": ["rbind", "rro"]},
            {"destination": "/w", "type": "bind", "source": "/w", "options": ["rbind", "ro"]},
        ]
    }
    recursive, plain = host_mounts(spec)
    assert (recursive.readonly, recursive.readonly_below) == (True, True)
    assert (plain.readonly, plain.readonly_below) == (True, False)
    first, second = guest_mounts(spec, {0: "/g/v", 1: "/g/w"})
    assert first["options"] == second["options"] == ["rbind", "ro"]


@pytest.mark.parametrize(
    ("options", "root", "wanted", "wanted_root"),
    [
        (["rbind", "rprivate", "ro"], "", ["rbind", "ro", "rslave"], "rslave"),
        (["rbind"], "rprivate", ["rbind", "rslave"], "rslave"),
        (["rbind", "rshared"], "rshared", ["rbind", "rshared"], "rshared"),
        (["rbind", "rslave"], "rslave", ["rbind", "rslave"], "rslave"),
    ],
)
def test_following_the_guests_mounts(
    options: list[str], root: str, wanted: list[str], wanted_root: str
) -> None:
    spec: dict[str, Any] = {"mounts": [{"destination": "/a"}, {"options": options}]}
    if root:
        spec["linux"] = {"rootfsPropagation": root}
    follow_guest(spec, 1)
    assert spec["mounts"] == [{"destination": "/a"}, {"options": wanted}]
    assert spec["linux"]["rootfsPropagation"] == wanted_root
