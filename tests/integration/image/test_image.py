"""Images: built the same twice, booted on both machines, looked at from inside."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.integration.image.boot import run_probe
from vmm.image.apt import Apt
from vmm.image.build import build_image
from vmm.image.elf import pvh_entry
from vmm.image.errors import ImageError
from vmm.image.sources import agent_sources
from vmm.image.store import GuestImage, KernelKind, find_image, list_images
from vmm.spec import PmemDevice

PROBE = {
    **agent_sources(),
    "guest_agent/main.py": Path(__file__).with_name("probe.py").read_bytes(),
}
MEMORY_LIMIT_KIB = 45 * 1024


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="img-", dir="/tmp") as name:
        yield Path(name)


def tuned_is_built(cache: Path) -> bool:
    return any((cache / "kernels").glob("tuned-*/vmlinux"))


def digests(image: GuestImage) -> dict[str, str]:
    paths = [image.kernel, image.rootfs, *([image.initrd] if image.initrd else [])]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


async def check(image: GuestImage, machine: str, runtime_dir: Path) -> None:
    facts = await run_probe(image, machine, runtime_dir)
    assert facts["release"] == [image.kernel_release]
    assert facts["pid"] == ["1"]
    assert {"/ erofs ro", "/proc proc rw", "/sys/fs/cgroup cgroup2 rw"} <= set(facts["mount"])
    assert {"/dev devtmpfs rw", "/run tmpfs rw", "/tmp tmpfs rw"} <= set(facts["mount"])
    assert int(facts["used_kib"][0]) < MEMORY_LIMIT_KIB
    assert facts["crun"][0].startswith("crun version")
    assert facts["drivers"] == [""], "drivers that were not loaded behind the agent"
    assert facts["xfs"] == ["True"], "the kernel could not load a file system on demand"


@pytest.mark.vm
@pytest.mark.parametrize("machine", ["q35", "microvm"])
async def test_debian_kernel_boots(
    image_cache: Path, host_apt: Apt, runtime_dir: Path, machine: str
) -> None:
    image = build_image("debian", image_cache, apt=host_apt, sources=PROBE)
    await check(image, machine, runtime_dir)


@pytest.mark.vm
@pytest.mark.parametrize("machine", ["q35", "microvm"])
async def test_tuned_kernel_boots(
    image_cache: Path, host_apt: Apt, runtime_dir: Path, machine: str
) -> None:
    if not tuned_is_built(image_cache):
        pytest.skip("the tuned kernel isn't built in the test cache")
    image = build_image("tuned", image_cache, apt=host_apt, sources=PROBE)
    assert image.initrd is None
    await check(image, machine, runtime_dir)


@pytest.mark.vm
@pytest.mark.parametrize("kind", ["debian", "tuned"])
@pytest.mark.parametrize("nvdimm", [False, True])
async def test_root_on_persistent_memory(
    image_cache: Path, host_apt: Apt, runtime_dir: Path, kind: KernelKind, nvdimm: bool
) -> None:
    if kind == "tuned" and not tuned_is_built(image_cache):
        pytest.skip("the tuned kernel isn't built in the test cache")
    image = build_image(kind, image_cache, apt=host_apt, sources=PROBE)
    before = digests(image)
    root = PmemDevice("root", image.rootfs, read_only=True, nvdimm=nvdimm)
    facts = await run_probe(
        image, "q35", runtime_dir, root, "" if nvdimm else "rootflags=dax=always"
    )
    assert "/ erofs ro" in facts["mount"]
    (mounted,) = facts["root"]
    assert mounted.startswith(("/dev/pmem0 ", "/dev/root "))
    assert ("dax=always" in mounted) is not nvdimm
    assert digests(image) == before


@pytest.mark.vm
async def test_debian_13_boots(image_cache: Path, trixie_apt: Apt, runtime_dir: Path) -> None:
    image = build_image("debian", image_cache, apt=trixie_apt, sources=PROBE)
    assert any(name.startswith("python3.13") for name in image.versions)
    await check(image, "q35", runtime_dir)


@pytest.mark.parametrize("kind", ["debian"])
def test_a_build_can_be_repeated_byte_for_byte(
    tmp_path: Path, host_apt: Apt, kind: KernelKind
) -> None:
    first = build_image(kind, tmp_path / "one", apt=host_apt)
    second = build_image(kind, tmp_path / "elsewhere" / "two", apt=host_apt)
    assert first.key == second.key
    assert digests(first) == digests(second)
    assert pvh_entry(first.kernel.read_bytes())


def test_an_image_is_built_once(tmp_path: Path, host_apt: Apt) -> None:
    said: list[str] = []
    first = build_image("debian", tmp_path, said.append, apt=host_apt)
    assert any("packing" in words for words in said)
    said.clear()
    again = build_image("debian", tmp_path, said.append, apt=host_apt)
    assert replace(again, built=first.built) == first
    assert not any("packing" in words for words in said)
    changed = build_image("debian", tmp_path, apt=host_apt, sources={"guest_agent/main.py": b""})
    assert changed.key != first.key
    assert list_images(tmp_path) == [changed, again]
    # What was asked for last is what a pod gets.
    assert find_image(tmp_path) == changed
    build_image("debian", tmp_path, apt=host_apt)
    assert find_image(tmp_path).key == first.key
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        image.kernel.parent.name for image in (first, changed)
    )


def test_a_failed_build_leaves_nothing(tmp_path: Path, host_apt: Apt) -> None:
    broken = {"guest_agent/main.py": b"def main(:\n"}
    with pytest.raises(ImageError, match="SyntaxError"):
        build_image("debian", tmp_path, apt=host_apt, sources=broken)
    assert list((tmp_path / "images").iterdir()) == []


def test_an_unknown_package_is_named(host_apt: Apt) -> None:
    with pytest.raises(ImageError, match="no-such-package-anywhere"):
        host_apt.closure(["no-such-package-anywhere"])


async def test_two_builds_at_once_share_the_work(tmp_path: Path, host_apt: Apt) -> None:
    images: list[GuestImage] = []

    async def build() -> None:
        images.append(
            await trio.to_thread.run_sync(
                lambda: build_image("debian", tmp_path, apt=host_apt), abandon_on_cancel=False
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(build)
        nursery.start_soon(build)
    assert images[0].rootfs == images[1].rootfs
    assert len(list_images(tmp_path)) == 1
