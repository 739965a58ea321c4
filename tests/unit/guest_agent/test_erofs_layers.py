"""Groups of disks that make a root file system."""

from __future__ import annotations

from typing import Any

import pytest

from guest_agent.erofs_layers import FOLDER, ungrouped
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

POINT = "/run/kata-containers/c/rootfs"
BASE = f"{FOLDER}/c"


def member(source: str, fstype: str = "erofs", *options: str, driver: str = "blk") -> Any:
    return {
        "driver": driver,
        "source": source,
        "fstype": fstype,
        "options": ["X-kata.multi-layer=true", *options],
        "mount_point": POINT,
    }


def stack(*members: Any) -> list[Any]:
    return ungrouped(members, "/run/kata-containers/c")


def test_a_disk_for_changes_over_layers() -> None:
    other = {"driver": "local", "options": [], "mount_point": "/x"}
    upper = member(
        "02/01",
        "ext4",
        "X-kata.overlay-upper",
        "noatime",
        "X-kata.mkdir.path={{ mount 0 }}/more:0755",
    )
    found = stack(upper, other, member("02/02", "erofs", "X-kata.overlay-lower"), member("02/03"))
    assert found[0] is other
    assert [(s["source"], s["mount_point"], s["options"]) for s in found[1:4]] == [
        ("02/02", f"{BASE}/lower-0", ["ro"]),
        ("02/03", f"{BASE}/lower-1", ["ro"]),
        ("02/01", f"{BASE}/upper", ["noatime"]),
    ]
    assert (found[4]["driver"], found[4]["mount_point"]) == ("overlayfs", POINT)
    assert found[4]["options"] == [
        f"lowerdir={BASE}/lower-0:{BASE}/lower-1",
        f"upperdir={BASE}/upper/upper",
        f"workdir={BASE}/upper/work",
    ]
    made = [option.rpartition("=")[2] for option in found[4]["driver_options"]]
    assert made == [f"{BASE}/upper/{name}" for name in ("upper", "work", "more")]


def test_partitions_are_in_the_order_of_their_numbers() -> None:
    gpt = "X-kata.gpt-partitioned=true"
    layers = [member("02", "erofs", gpt, f"X-kata.partition-number={n}") for n in (2, 1)]
    found = stack(*layers)
    assert [disk["partition"] for disk in found[:2]] == [1, 2]
    assert found[2]["mount_point"] == POINT


def test_the_kind_of_disk_shows_in_its_place() -> None:
    places = ("02", "0:1")
    found = stack(*(member(place, driver="erofs.multi-layer") for place in places))
    assert [disk["driver"] for disk in found[:2]] == ["blk", "scsi"]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ([member("02", "ext4")], status.INVALID_ARGUMENT),
        ([member("1", "ext4"), member("2", "ext4"), member("3")], status.INVALID_ARGUMENT),
        ([member("1", "xfs"), member("3")], status.INVALID_ARGUMENT),
        ([member("1", "erofs", "X-kata.partition-number=x")], status.INVALID_ARGUMENT),
        (
            [member("1", "erofs", "X-kata.mkdir.path={{ mount 0 }}/../x")],
            status.INVALID_ARGUMENT,
        ),
        ([member("1", "erofs", "X-kata.mkdir.path={{ mount 1 }}/x")], status.INVALID_ARGUMENT),
        ([member("1", "erofs", "X-kata.dmverity-enabled=true")], status.UNIMPLEMENTED),
    ],
)
def test_other_groups_are_refused(members: list[Any], code: int) -> None:
    with pytest.raises(TtrpcError) as caught:
        stack(*members)
    assert caught.value.code == code
