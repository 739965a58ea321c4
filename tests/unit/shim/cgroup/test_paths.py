"""Mount tables of the three kinds of host, and the two kinds of cgroup paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cgroup.paths import Hierarchies, PodPath, find_hierarchies, pod_path, slice_path
from shim.errors import InvalidArgument

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory
36 23 0:32 / /mnt/elsewhere rw - cgroup cgroup rw,memory
37 31 0:32 /some/part /sys/fs/cgroup/part rw - cgroup cgroup rw,blkio
"""


def test_version_2() -> None:
    found = find_hierarchies(V2)
    assert found == Hierarchies(2, {"": "/sys/fs/cgroup"})
    assert found.roots == ["/sys/fs/cgroup"]
    assert found.root("memory") == "/sys/fs/cgroup"


def test_hybrid_has_its_controllers_in_version_1() -> None:
    found = find_hierarchies(HYBRID)
    assert found.version == 1
    assert found.mounts == {
        "name=systemd": "/sys/fs/cgroup/systemd",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert len(found.roots) == 3
    assert found.root("pids") is None


def test_none() -> None:
    assert find_hierarchies("1 1 0:1 / / rw - ext4 /dev/vda rw\nbroken line\n").version == 0


@pytest.mark.parametrize(
    ("path", "parent", "systemd"),
    [
        ("/kubepods/burstable/pod1/abc", "/kubepods/burstable/pod1", False),
        ("/default/abc", "/default", False),
        ("abc", "/", False),
        ("/k/../../../x/abc", "/x", False),
        ("kubepods-pod1.slice:cri-containerd:abc", "/kubepods.slice/kubepods-pod1.slice", True),
        ("system.slice:docker:abc", "/system.slice", True),
        (":docker:abc", "/system.slice", True),
        ("-.slice:x:abc", "/", True),
    ],
)
def test_where_a_pod_is(path: str, parent: str, systemd: bool) -> None:
    assert pod_path(path) == PodPath(parent, systemd)
    child = PodPath(parent, systemd).child("katapy_abc")
    assert child == f"{parent.rstrip('/')}/katapy_abc"


def test_no_path_is_no_cgroup() -> None:
    assert pod_path("") is None


@pytest.mark.parametrize(
    "path", ["/", "/..", "a:b", "a:b:c:d", "x:y:z", "a--b.slice:p:n", "a/b.slice:p:n"]
)
def test_paths_that_name_none(path: str) -> None:
    with pytest.raises(InvalidArgument, match="cgroupsPath"):
        pod_path(path)


def test_a_slice_is_in_those_its_name_says() -> None:
    assert slice_path("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


@given(st.text("ab/.:-_", max_size=30))
def test_any_path_stays_below_the_root(path: str) -> None:
    try:
        pod = pod_path(path)
    except InvalidArgument:
        return
    if pod is not None:
        assert pod.parent.startswith("/")
        assert ".." not in pod.parent.split("/")
