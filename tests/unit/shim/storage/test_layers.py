from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidArgument
from shim.storage.layers import Directory, is_stack, resolve
from shim.storage.options import Mount

POINTS = ["/p/0", "/p/1", "/p/2", "/p/3"]


def test_places_are_filled_in() -> None:
    entry = Mount(
        "format/mkdir/overlay",
        "overlay",
        "",
        (
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "X-containerd.mkdir.path={{mount 0}}/work:0711:5:6",
            "upperdir={{ mount 0 }}/upper",
            "lowerdir={{ overlay 1 3 }}",
            "index=off",
        ),
    )
    assert is_stack([entry])
    assert resolve(entry, POINTS) == (
        Mount(
            "overlay",
            "overlay",
            "",
            ("upperdir=/p/0/upper", "lowerdir=/p/1:/p/2:/p/3", "index=off"),
        ),
        (Directory("/p/0/upper", 0o755), Directory("/p/0/work", 0o711, (5, 6))),
    )


def test_an_overlay_may_be_named_from_the_last_to_the_first() -> None:
    entry = Mount("format/overlay", "overlay", "", ("lowerdir={{ overlay 3 1 }}",))
    assert resolve(entry, POINTS)[0].options == ("lowerdir=/p/3:/p/2:/p/1",)


def test_a_source_may_be_a_place() -> None:
    entry = Mount("format/bind", "{{ mount 2 }}/x", "", ("rbind",))
    assert resolve(entry, POINTS) == (Mount("bind", "/p/2/x", "", ("rbind",)), ())


def test_what_builds_on_nothing_stays_as_it_is() -> None:
    entry = Mount("ext4", "/{{ mount 0 }}", "", ("X-containerd.mkdir.path=/x",))
    assert not is_stack([entry])
    assert resolve(entry, []) == (entry, ())


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("format/overlay", "lowerdir={{ mount 4 }}"),
        ("format/overlay", "lowerdir={{ overlay 2 4 }}"),
        ("format/overlay", "lowerdir={{ overlay 1 }}"),
        ("format/overlay", "lowerdir={{ source 1 }}"),
        ("format/overlay", "lowerdir={{ mount 1"),
        ("mkdir/overlay", "X-containerd.mkdir.path=relative"),
        ("mkdir/overlay", "X-containerd.mkdir.path=/a:9"),
        ("mkdir/overlay", "X-containerd.mkdir.path=/a:0755:1"),
        ("mkdir/overlay", "X-containerd.mkdir.path=/a:0755:1:x"),
        ("mkfs/ext4", "X-containerd.mkfs.fs=ext4"),
    ],
)
def test_what_can_not_be_understood_is_refused(kind: str, option: str) -> None:
    with pytest.raises(InvalidArgument):
        resolve(Mount(kind, "overlay", "", (option,)), POINTS)


@given(st.text(alphabet="{} mountoverlay0123-/:", max_size=40))
def test_nothing_else_is_raised(text: str) -> None:
    entry = Mount("format/mkdir/overlay", text, "", (text, f"X-containerd.mkdir.path={text}"))
    try:
        resolved, _ = resolve(entry, POINTS)
    except InvalidArgument:
        return
    assert "{{" not in resolved.source
