from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shim.storage.mountinfo import MountPoint, inner_path, mount_of, parse_mountinfo

TEXT = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
22 21 0:20 / /data rw - tmpfs tmpfs rw,size=1024k,mode=777
23 21 0:20 /sub /with\\040space rw master:1 - tmpfs tmpfs rw,size=1024k
24 22 0:21 / /data rw - hugetlbfs none rw,pagesize=2M
"""


def test_parsing() -> None:
    root, data, space, top = parse_mountinfo(TEXT + "garbage\n")
    assert root.fstype == "ext4"
    assert data.options["size"] == "1024k"
    assert space == MountPoint("/sub", "/with space", "tmpfs", "tmpfs", space.options)
    assert top.options == {"rw": "", "pagesize": "2M"}


def test_the_deepest_and_topmost_mount_counts() -> None:
    mounts = parse_mountinfo(TEXT)
    assert mount_of("/data/x", mounts) is mounts[3]
    assert mount_of("/database", mounts) is mounts[0]
    assert mount_of("/with space", mounts) is mounts[2]
    assert mount_of("/", []) is None


def test_paths_inside_a_file_system() -> None:
    root, data, space, _ = parse_mountinfo(TEXT)
    assert inner_path("/data", data) == ""
    assert inner_path("/data/a/b", data) == "a/b"
    assert inner_path("/with space", space) == "sub"
    assert inner_path("/with space/x", space) == "sub/x"
    assert inner_path("/etc", root) == "etc"


@given(st.text())
def test_nothing_breaks_the_parser(text: str) -> None:
    parse_mountinfo(text)
