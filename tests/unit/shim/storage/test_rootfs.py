from __future__ import annotations

from typing import Any

import pytest

from shim.errors import InvalidArgument, Unimplemented
from shim.storage.options import Mount
from shim.storage.rootfs import (
    MAX_LAYERS,
    BlockRootfs,
    LayeredRootfs,
    PackedRootfs,
    SharedRootfs,
    plan_rootfs,
)


def plan(
    *mounts: Mount, **options: Any
) -> SharedRootfs | BlockRootfs | LayeredRootfs | PackedRootfs:
    arguments: dict[str, Any] = {
        "can_share": True,
        "can_attach": True,
        "is_block": lambda path: path.startswith("/dev/"),
        **options,
    }
    return plan_rootfs(mounts, "/bundle/rootfs", **arguments)


def test_no_mounts_means_the_bundles_root() -> None:
    assert plan() == SharedRootfs((), "/bundle/rootfs")


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (
            Mount("ext4", "/img", "", ("loop", "rw", "noatime")),
            BlockRootfs("/img", "ext4", False, True, False, ("noatime",)),
        ),
        (
            Mount("ext4", "/img", "", ("loop", "ro", "direct-io")),
            BlockRootfs("/img", "ext4", True, True, True, ("ro",)),
        ),
        (
            Mount("xfs", "/dev/mapper/pool-snap-1", "", ("nouuid",)),
            BlockRootfs("/dev/mapper/pool-snap-1", "xfs", False, False, False, ("nouuid",)),
        ),
        (
            Mount("erofs", "/layer.erofs", "", ("ro", "loop")),
            BlockRootfs("/layer.erofs", "erofs", True, True, False, ("ro",)),
        ),
    ],
)
def test_a_disk_goes_to_the_vm_as_one(mount: Mount, expected: BlockRootfs) -> None:
    assert plan(mount) == expected


@pytest.mark.parametrize(
    "mounts",
    [
        [Mount("overlay", "overlay", "", ("lowerdir=/a:/b",))],
        [Mount("bind", "/dir", "", ("rbind", "rw"))],
        [Mount("btrfs", "/dev/sda", "", ("subvolid=5",))],
        [Mount("ext4", "/not/a/device", "", ())],
        [Mount("erofs", "/l", "", ("ro", "loop", "device=/m"))],
        [Mount("ext4", "/img", "", ("loop", "uidmap=0:1:1", "gidmap=0:1:1"))],
        [Mount("ext4", "/img", "sub", ("loop",))],
        [Mount("erofs", "/l", "a", ("loop",)), Mount("overlay", "overlay", "", ("lowerdir=/a",))],
    ],
)
def test_everything_else_is_shared(mounts: list[Mount]) -> None:
    assert plan(*mounts) == SharedRootfs(tuple(mounts), "/bundle/rootfs")


def test_a_vm_without_room_for_a_disk_shares_it() -> None:
    assert isinstance(plan(Mount("ext4", "/img", "", ("loop",)), can_attach=False), SharedRootfs)


def test_a_vm_that_shares_nothing_gets_a_packed_root() -> None:
    overlay = Mount("overlay", "overlay", "", ("lowerdir=/a",))
    assert plan(overlay, can_share=False) == PackedRootfs((overlay,), "/bundle/rootfs")
    assert plan(can_share=False) == PackedRootfs((), "/bundle/rootfs")
    with pytest.raises(Unimplemented, match="overlay"):
        plan(overlay, can_share=False, can_attach=False)


WRITABLE = Mount("ext4", "/rw.img", "", ("rw", "loop"))
OVERLAY = Mount(
    "format/mkdir/overlay",
    "overlay",
    "",
    (
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "upperdir={{ mount 0 }}/upper",
        "lowerdir={{ overlay 1 2 }}",
    ),
)


def layers(number: int) -> list[Mount]:
    return [Mount("erofs", f"/{index}", "", ("ro", "loop")) for index in range(number)]


def test_layers_become_disks() -> None:
    assert plan(WRITABLE, *layers(2), OVERLAY) == LayeredRootfs(
        (
            BlockRootfs("/rw.img", "ext4", False, True, False, ()),
            BlockRootfs("/0", "erofs", True, True, False, ("ro",)),
            BlockRootfs("/1", "erofs", True, True, False, ("ro",)),
        ),
        OVERLAY,
    )


@pytest.mark.parametrize(
    "mounts",
    [
        [WRITABLE, *layers(MAX_LAYERS), OVERLAY],
        [WRITABLE, Mount("erofs", "/l", "", ("ro", "loop", "device=/m")), *layers(1), OVERLAY],
        [*layers(1), Mount("format/bind", "{{ mount 0 }}", "", ("ro", "rbind"))],
        [
            WRITABLE,
            *layers(2),
            Mount("format/overlay", "overlay", "", ("lowerdir={{ overlay 1 2 }}", "uidmap=0:1:1")),
        ],
    ],
)
def test_layers_that_can_not_be_disks_are_stacked_on_the_host(mounts: list[Mount]) -> None:
    assert plan(*mounts) == SharedRootfs(tuple(mounts), "/bundle/rootfs")
    with pytest.raises(Unimplemented, match="layers"):
        plan(*mounts, can_share=False)


CHANGES_ON_HOST = Mount(
    "format/mkdir/overlay",
    "overlay",
    "",
    ("workdir=/snapshots/9/work", "upperdir=/snapshots/9/fs", "lowerdir={{ overlay 0 1 }}"),
)


def test_changes_that_belong_into_a_directory_of_the_host_go_there() -> None:
    mounts = [*layers(2), CHANGES_ON_HOST]
    assert plan(*mounts) == SharedRootfs(tuple(mounts), "/bundle/rootfs")


def test_changes_stay_in_the_guest_if_nothing_is_shared() -> None:
    found = plan(*layers(2), CHANGES_ON_HOST, can_share=False)
    assert isinstance(found, LayeredRootfs)
    assert found.in_memory
    assert found.overlay.options == ("lowerdir={{ overlay 0 1 }}",)


@pytest.mark.parametrize(
    "option",
    ["lowerdir={{ overlay 0 1 }}:/host", "lowerdir=/host", "X-containerd.mkdir.path=/host/upper"],
)
def test_other_directories_of_the_host_are_not_left_out(option: str) -> None:
    top = Mount("format/mkdir/overlay", "overlay", "", (option,))
    assert isinstance(plan(*layers(2), top), SharedRootfs)
    with pytest.raises(Unimplemented):
        plan(*layers(2), top, can_share=False)


def test_a_view_of_layers_needs_no_disk_for_changes() -> None:
    top = Mount("format/mkdir/overlay", "overlay", "", ("lowerdir={{ overlay 0 1 }}",))
    found = plan(*layers(2), top)
    assert isinstance(found, LayeredRootfs)
    assert not found.in_memory


def test_a_layer_is_not_used_unverified() -> None:
    layer = Mount("erofs", "/l", "", ("ro", "loop", "X-containerd.dmverity=/l.dmverity"))
    for mounts in ([layer], [WRITABLE, layer, *layers(1), OVERLAY]):
        with pytest.raises(Unimplemented, match="dm-verity"):
            plan(*mounts)


def test_a_stack_that_can_not_be_understood_is_refused_before_anything_is_made() -> None:
    with pytest.raises(InvalidArgument, match="no mount 2"):
        plan(*layers(2), OVERLAY)
    with pytest.raises(InvalidArgument, match="mkfs"):
        plan(Mount("mkfs/ext4", "/rw.img", "", ("loop",)), *layers(2), OVERLAY)


def test_unresolved_directives_and_escapes_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="X-containerd"):
        plan(Mount("ext4", "/img", "", ("loop", "X-containerd.mkfs.fs=ext4")))
    with pytest.raises(InvalidArgument, match=r"\.\./x"):
        plan(Mount("bind", "/d", "../x", ("rbind",)))
