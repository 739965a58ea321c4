from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Unimplemented
from shim.storage.direct_volume import DirectVolume
from shim.storage.volumes import (
    AssignedDisk,
    GuestDirectory,
    MemoryVolume,
    ProxiedSocket,
    PushedVolume,
    RawDisk,
    ScratchDisk,
    SharedVolume,
    Source,
    VolumeSettings,
    kubelet_volume,
    plan_volume,
)

POD = "/var/lib/kubelet/pods/0a1b"
DIRECTORY = stat.S_IFDIR | 0o755
DEFAULT = VolumeSettings()
UNSHARED = VolumeSettings(can_share=False)


def volume(kind: str, name: str = "v") -> str:
    return f"{POD}/volumes/kubernetes.io~{kind}/{name}"


@pytest.mark.parametrize("kind", ["configmap", "secret", "projected", "downward-api"])
def test_what_kubelet_updates_is_pushed(kind: str) -> None:
    source = Source(volume(kind), DIRECTORY, fstype="tmpfs")
    assert plan_volume(source, DEFAULT) == PushedVolume(source.path)
    kata_guest = replace(DEFAULT, can_push=False)
    assert plan_volume(source, kata_guest) == SharedVolume(source.path)
    below = replace(source, path=f"{source.path}/key")
    assert plan_volume(below, DEFAULT) == SharedVolume(below.path)


def test_the_kubelet_directory_is_configurable() -> None:
    source = Source("/k/pods/u/volumes/kubernetes.io~secret/s", DIRECTORY)
    assert plan_volume(source, DEFAULT) == SharedVolume(source.path)
    assert plan_volume(source, VolumeSettings(kubelet_root="/k")) == PushedVolume(source.path)


def test_memory_empty_dir_keeps_size_mode_and_group() -> None:
    source = Source(volume("empty-dir"), stat.S_IFDIR | 0o2777, 0, 2000, "tmpfs", size=1 << 20)
    options = ("mode=2777", "gid=2000", "size=1048576")
    assert plan_volume(source, DEFAULT) == MemoryVolume(source.path, "tmpfs", options)
    unlimited = replace(source, size=0, gid=0)
    assert plan_volume(unlimited, UNSHARED) == MemoryVolume(source.path, "tmpfs", ("mode=2777",))


def test_sub_path_of_a_memory_empty_dir_is_in_the_same_tmpfs() -> None:
    path = f"{POD}/volume-subpaths/cache/main/0"
    source = Source(path, DIRECTORY, fstype="tmpfs", inside="a/b", size=4096)
    plan = plan_volume(source, DEFAULT)
    assert plan == MemoryVolume(volume("empty-dir", "cache"), "tmpfs", ("size=4096",), "a/b")


def test_huge_pages() -> None:
    source = Source(volume("empty-dir"), DIRECTORY, fstype="hugetlbfs", size=1 << 22)
    source = replace(source, page_size="2M")
    options = ("pagesize=2M", "size=4194304")
    assert plan_volume(source, DEFAULT) == MemoryVolume(source.path, "hugetlbfs", options)


def test_empty_dir_on_disk() -> None:
    source = Source(volume("empty-dir"), stat.S_IFDIR | 0o777, gid=7, fstype="ext4")
    assert plan_volume(source, DEFAULT) == SharedVolume(source.path)
    disk = ScratchDisk(source.path, 0, 7, 0o777)
    assert plan_volume(source, VolumeSettings(emptydir_mode="block-plain")) == disk
    assert plan_volume(source, UNSHARED) == disk
    in_guest = GuestDirectory(source.path, 0o777, 7)
    assert plan_volume(source, VolumeSettings(guest_emptydir=True)) == in_guest
    assert plan_volume(source, VolumeSettings(can_share=False, can_attach=False)) == in_guest


def test_host_paths() -> None:
    assert plan_volume(Source("/data", DIRECTORY), DEFAULT) == SharedVolume("/data")
    file = Source("/data", stat.S_IFREG | 0o644)
    assert plan_volume(file, DEFAULT) == SharedVolume("/data")
    assert plan_volume(file, UNSHARED) == PushedVolume("/data", is_file=True)
    assert plan_volume(Source("/data", DIRECTORY), UNSHARED) == PushedVolume("/data")
    socket = Source("/s", stat.S_IFSOCK | 0o660, 1, 2)
    assert plan_volume(socket, DEFAULT) == ProxiedSocket("/s", 1, 2, 0o660)
    assert plan_volume(Source("/dev/sdb", stat.S_IFBLK), DEFAULT) == RawDisk("/dev/sdb")


def test_direct_volume_wins_over_what_is_there() -> None:
    info = DirectVolume("/v", "/dev/sdb", "ext4")
    assert plan_volume(Source("/v", DIRECTORY, direct=info), DEFAULT) == AssignedDisk(info)


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (Source("/dev/kvm", stat.S_IFCHR), DEFAULT),
        (Source("/s", stat.S_IFSOCK), VolumeSettings(can_listen=False)),
        (Source("/dev/sdb", stat.S_IFBLK), VolumeSettings(can_attach=False)),
        (Source("/d", DIRECTORY), VolumeSettings(can_share=False, can_push=False)),
        (Source("/fifo", stat.S_IFIFO), UNSHARED),
    ],
)
def test_no_way_is_said(source: Source, settings: VolumeSettings) -> None:
    with pytest.raises(Unimplemented, match=source.path):
        plan_volume(source, settings)


@given(st.text("/abcvolumes~-kubernetes.io", max_size=60))
def test_any_path_has_a_kind_or_none(tail: str) -> None:
    kind, below = kubelet_volume(f"/var/lib/kubelet/pods/{tail}", "/var/lib/kubelet")
    assert kind or not below


def test_sockets_of_the_host_are_looked_for_in_its_own_directories() -> None:
    source = Source("/run/spire", DIRECTORY, sockets=True)
    assert plan_volume(source, DEFAULT) == SharedVolume("/run/spire", sockets=True)
    later = replace(DEFAULT, socket_directories=("/run/",))
    unseen = replace(source, sockets=False)
    assert plan_volume(unseen, DEFAULT) == SharedVolume("/run/spire")
    assert plan_volume(unseen, later) == SharedVolume("/run/spire", sockets=True)
    assert plan_volume(replace(unseen, path="/runs"), later) == SharedVolume("/runs")
    file = replace(unseen, mode=stat.S_IFREG | 0o644)
    assert plan_volume(file, later) == SharedVolume("/run/spire")
    # In an emptyDir they are those of the pod, and a Kata agent covers none.
    own = replace(source, path=volume("empty-dir"))
    assert plan_volume(own, DEFAULT) == SharedVolume(own.path)
    kata_guest = replace(later, can_cover=False)
    assert plan_volume(source, kata_guest) == SharedVolume("/run/spire")
