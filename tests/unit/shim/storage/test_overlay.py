from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import ResourceExhausted
from shim.storage.overlay import PAGE_SIZE, compact, split_layers

SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def test_short_data_stays_as_it_is() -> None:
    data = ["lowerdir=/a:/b", "upperdir=/c", "workdir=/d"]
    assert compact(data) == (None, ",".join(data))


@given(st.integers(60, 400))
def test_many_layers_are_named_from_their_common_directory(count: int) -> None:
    layers = [f"{SNAPSHOTS}/{number}/fs" for number in range(count)]
    upper = f"upperdir={SNAPSHOTS}/new/fs"
    directory, data = compact(["index=off", upper, "lowerdir=" + ":".join(layers)])
    assert directory == SNAPSHOTS
    assert len(data) < PAGE_SIZE
    first, second, lower = data.split(",")
    assert (first, second) == ("index=off", upper)
    named = lower.removeprefix("lowerdir=").split(":")
    assert [os.path.join(directory, name) for name in named] == layers


def test_layers_all_over_the_place_are_refused() -> None:
    layers = ":".join(f"/{number}/{'x' * 60}" for number in range(100))
    with pytest.raises(ResourceExhausted, match=r"100 layers.*no common directory"):
        compact(["lowerdir=" + layers])


def test_too_many_layers_are_refused() -> None:
    layers = ":".join(f"/base/{number:060}" for number in range(100))
    with pytest.raises(ResourceExhausted, match="100 layers below /base"):
        compact(["lowerdir=" + layers])


def test_an_escaped_colon_belongs_to_the_name() -> None:
    assert split_layers(r"/a\:b:/c\\:/d") == [r"/a\:b", r"/c\\", "/d"]
