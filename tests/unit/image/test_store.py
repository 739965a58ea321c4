"""Images on disk: what is found, what is preferred, and what an incomplete one does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vmm.image.errors import ImageError
from vmm.image.store import (
    GuestImage,
    KernelKind,
    find_image,
    image_directory,
    list_images,
    read_record,
    write_record,
)


def put(cache: Path, kind: KernelKind, key: str, built: float) -> Path:
    directory = image_directory(cache, kind, "x86_64", key)
    directory.mkdir(parents=True)
    for name in ("vmlinux", "rootfs.erofs"):
        (directory / name).write_bytes(b"x")
    write_record(
        directory,
        GuestImage(
            kind=kind,
            architecture="x86_64",
            kernel=directory / "vmlinux",
            initrd=None,
            rootfs=directory / "rootfs.erofs",
            kernel_args="ro",
            key=key,
            kernel_release="6.1.0",
            agent_key="a",
            versions={"crun": "1.8"},
            built=built,
        ),
    )
    return directory


def test_images_are_listed_newest_first(tmp_path: Path) -> None:
    now = time.time()
    put(tmp_path, "debian", "old", now - 10)
    directory = put(tmp_path, "debian", "new", now)
    assert [image.key for image in list_images(tmp_path)] == ["new", "old"]
    image = find_image(tmp_path)
    assert (image.kernel, image.initrd) == (directory / "vmlinux", None)
    assert image.versions == {"crun": "1.8"}


def test_an_image_can_be_moved_with_its_cache(tmp_path: Path) -> None:
    put(tmp_path / "a", "debian", "k", 1.0)
    (tmp_path / "a").rename(tmp_path / "b")
    assert find_image(tmp_path / "b").kernel.exists()


def test_the_last_built_image_counts_unless_a_kernel_is_named(tmp_path: Path) -> None:
    put(tmp_path, "tuned", "t", 1.0)
    put(tmp_path, "debian", "d", 2.0)
    assert find_image(tmp_path).kind == "debian"
    assert find_image(tmp_path, "tuned").kind == "tuned"


@pytest.mark.parametrize("damage", ["vmlinux", "rootfs.erofs", "image.json"])
def test_incomplete_images_are_passed_over(tmp_path: Path, damage: str) -> None:
    directory = put(tmp_path, "debian", "k", 1.0)
    (directory / damage).unlink()
    assert list_images(tmp_path) == []
    assert read_record(directory) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "other"}'])
def test_damaged_records_are_passed_over(tmp_path: Path, text: str) -> None:
    directory = put(tmp_path, "debian", "k", 1.0)
    (directory / "image.json").write_text(text)
    assert list_images(tmp_path) == []


def test_a_missing_image_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"katapy image build$"):
        find_image(tmp_path / "none")
    put(tmp_path, "debian", "k", 1.0)
    with pytest.raises(ImageError, match="katapy image build --kernel tuned"):
        find_image(tmp_path, "tuned")
