"""Root file systems and volumes that are described in mount options for Kata."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidArgument, KatapyError, Unimplemented
from shim.storage.direct_volume import DirectVolume
from shim.storage.kata_volume import (
    IS_FILE,
    OVERLAY_RW,
    VOLUME,
    Described,
    disk_of_mount,
    expand_rootfs,
    parse_volume,
)
from shim.storage.options import Mount
from shim.storage.rootfs import BlockRootfs, LayeredRootfs, plan_rootfs

LAYER = "io.katacontainers.fs-opt.layer="
FILE = "io.katacontainers.fs-opt.block_device=file,io.katacontainers.fs-opt.is-layer"


def volume(kind: str, **fields: Any) -> str:
    text = json.dumps({"volume_type": kind, **fields})
    return VOLUME + base64.b64encode(text.encode()).decode()


def rootfs(*options: str) -> tuple[Mount, ...]:
    return expand_rootfs([Mount("fuse3.kata-overlay", "/", "", options)])


def overlay(lower: str) -> Mount:
    return Mount("format/overlay", "overlay", "", (f"lowerdir={lower}", OVERLAY_RW))


def test_other_root_file_systems_stay_as_they_are() -> None:
    mounts = (Mount("overlay", "overlay", "", ("lowerdir=/a:/b",)),)
    assert expand_rootfs(mounts) == mounts
    assert expand_rootfs(()) == ()


def test_layers_of_a_snapshotter() -> None:
    encoded = base64.b64encode(f"/l/b,ext4,noatime,{FILE}".encode()).decode()
    mounts = rootfs(f"{LAYER}/l/a,erofs,ro,{FILE}", LAYER + encoded, OVERLAY_RW, "lowerdir=b:a")
    assert mounts == (
        Mount("erofs", "/l/a", "", ("ro", "loop")),
        Mount("ext4", "/l/b", "", ("noatime", "ro", "loop")),
        overlay("{{ mount 1 }}:{{ mount 0 }}"),
    )
    plan = plan_rootfs(
        [Mount("fuse3.kata-overlay", "/", "", (f"{LAYER}/l/a,erofs,ro,{FILE}",))],
        "/bundle/rootfs",
        can_share=True,
        can_attach=True,
    )
    disk = BlockRootfs("/l/a", "erofs", True, True, False, ("ro",))
    assert plan == LayeredRootfs((disk,), overlay("{{ mount 0 }}"))


def test_what_the_guest_can_not_stack_is_not_stacked_by_the_host() -> None:
    mounts = [Mount("fuse3.kata-overlay", "/", "", (f"{LAYER}/l/a,tar,ro,{FILE}",))]
    with pytest.raises(Unimplemented, match="changes are to stay in the guest"):
        plan_rootfs(mounts, "/bundle/rootfs", can_share=True, can_attach=True)


def test_described_disks() -> None:
    image = volume("image_raw_block", source="/i", fs_type="erofs")
    assert rootfs(image, "lowerdir=/host") == (
        Mount("erofs", "/i", "", ("ro", "loop")),
        overlay("{{ mount 0 }}"),
    )
    layers = [volume("layer_raw_block", source=f"/{n}", fs_type="erofs") for n in "ab"]
    assert rootfs(*layers) == (
        Mount("erofs", "/a", "", ("ro", "loop")),
        Mount("erofs", "/b", "", ("ro", "loop")),
        overlay("{{ mount 0 }}:{{ mount 1 }}"),
    )
    direct = volume("direct_block", source="/dev/sdb", fs_type="ext4", options=["noatime"])
    assert rootfs(direct) == (Mount("ext4", "/dev/sdb", "", ("noatime", "loop")),)
    metadata = {"direct_volume": {"metadata": {"fsGroup": "5"}}}
    option = volume("direct_block", source="/d", fs_type="xfs", **metadata)
    assert parse_volume(option) == Described("direct_block", "/d", "xfs", (), {"fsGroup": "5"})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ((f"{VOLUME}!",), InvalidArgument, "volume="),
        ((VOLUME + base64.b64encode(b"[]").decode(),), InvalidArgument, "not an object"),
        ((volume("ufo"),), InvalidArgument, "'ufo' is not known"),
        ((volume("direct_block", source="x", fs_type="ext4"),), InvalidArgument, "absolute"),
        ((volume("direct_block", source="/x"),), InvalidArgument, "fs_type is missing"),
        ((volume("image_guest_pull", source="i"),), Unimplemented, "no program that pulls"),
        ((volume("image_nydus_fs", source="/i"),), Unimplemented, "no nydusd"),
        (
            (volume("image_raw_block", source="/i", fs_type="erofs", dm_verity={"hash": "0"}),),
            Unimplemented,
            "dm-verity",
        ),
        ((f"{LAYER}/l,erofs,io.katacontainers.fs-opt.root-hash=0",), Unimplemented, "dm-verity"),
        ((f"{LAYER}/l,erofs", "lowerdir=m"), InvalidArgument, "lowerdir names m"),
        ((f"{LAYER}l,erofs",), InvalidArgument, "want PATH,TYPE"),
        ((f"{LAYER}%",), InvalidArgument, "want PATH,TYPE"),
        ((OVERLAY_RW,), InvalidArgument, "no layer is named"),
        (
            (f"{LAYER}/l,erofs", volume("direct_block", source="/x", fs_type="ext4")),
            InvalidArgument,
            "both",
        ),
        (
            tuple(
                volume(kind, source="/x", fs_type="ext4")
                for kind in ("image_raw_block", "layer_raw_block")
            ),
            InvalidArgument,
            "several types",
        ),
    ],
)
def test_what_is_wrong_or_not_served(
    options: tuple[str, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        rootfs(*options)


@given(
    st.dictionaries(
        st.sampled_from(
            ("volume_type", "source", "fs_type", "options", "direct_volume", "dm_verity")
        ),
        st.recursive(
            st.none() | st.text() | st.integers() | st.sampled_from(("direct_block", "/x")),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_any_description_is_read_or_refused(fields: dict[str, Any]) -> None:
    option = VOLUME + base64.b64encode(json.dumps(fields).encode()).decode()
    with contextlib.suppress(KatapyError):
        parse_volume(option)


def test_one_of_several_mounts_can_not_be_for_kata() -> None:
    with pytest.raises(InvalidArgument, match="2 mounts"):
        expand_rootfs([Mount("bind", "/a"), Mount("x", "/", "", (f"{LAYER}/l,erofs",))])


def test_volumes_that_are_disks() -> None:
    assert disk_of_mount("/dir", "bind", ("rbind", "ro")) is None
    assert disk_of_mount("/i", "ext4", (IS_FILE, "noatime")) == DirectVolume(
        "/i", "/i", "ext4", ("noatime",)
    )
    metadata = {"direct_volume": {"metadata": {"fsGroup": "5"}}}
    option = volume("direct_block", source="/d", fs_type="xfs", options=["ro"], **metadata)
    assert disk_of_mount("/v", "bind", ("rbind", option)) == DirectVolume(
        "/v", "/d", "xfs", ("ro",), 5
    )
    bad = {"direct_volume": {"metadata": {"fsGroup": "x"}}}
    for wrong in (
        volume("image_raw_block", source="/i", fs_type="erofs"),
        volume("direct_block", source="/d", fs_type="xfs", **bad),
    ):
        with pytest.raises(InvalidArgument):
            disk_of_mount("/v", "bind", (wrong,))
    with pytest.raises(InvalidArgument, match="layers are named by"):
        disk_of_mount("/i", "ext4", (IS_FILE, "io.katacontainers.fs-opt.is-layer"))
