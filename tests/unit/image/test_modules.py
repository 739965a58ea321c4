"""Kernel modules: loading order and modprobe's tables, from real .modinfo sections."""

from __future__ import annotations

import lzma
import struct

import pytest

from vmm.image.errors import ImageError
from vmm.image.modules import ModuleSet, alias_table, dependency_table, module_name


def ko(depends: str = "", *aliases: str) -> bytes:
    """A relocatable ELF file with a .modinfo section, and nothing else."""
    entries = [b"license=GPL", b"depends=" + depends.encode()]
    entries += [b"alias=" + alias.encode() for alias in aliases]
    info = b"\0".join(entries) + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    header = 64
    table = header + len(info) + len(names)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)

    def entry(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    sections = bytes(64) + entry(1, header, len(info)) + entry(10, header + len(info), len(names))
    return elf + info + names + sections


FILES = {
    "kernel/a/virtio.ko": ko("virtio-ring"),
    "kernel/a/virtio_ring.ko": ko(),
    "kernel/b/virtio-pci.ko.xz": lzma.compress(ko("virtio,virtio_ring", "pci:v00001AF4d*")),
    "kernel/c/lonely.ko": ko("crc16", "fs-lonely", "lonely2"),
}


def test_order_has_each_module_after_what_it_needs() -> None:
    modules = ModuleSet(FILES)
    names = [module.name for module in modules.order(["virtio_pci", "virtio"])]
    assert names == ["virtio_ring", "virtio", "virtio_pci"]


def test_packed_modules_are_unpacked() -> None:
    module = ModuleSet(FILES).order(["virtio_pci"])[-1]
    assert (module.path, module.data) == (
        "kernel/b/virtio-pci.ko",
        lzma.decompress(FILES["kernel/b/virtio-pci.ko.xz"]),
    )


def test_builtin_modules_are_left_out() -> None:
    modules = ModuleSet(FILES, builtin=["crc16", "ext4"])
    assert [module.name for module in modules.order(["ext4", "lonely"])] == ["lonely"]
    assert modules.have(["ext4", "lonely", "absent"]) == ["ext4", "lonely"]


def test_missing_modules_are_named() -> None:
    with pytest.raises(ImageError, match="no module crc16"):
        ModuleSet(FILES).order(["lonely"])


def test_circles_are_named() -> None:
    modules = ModuleSet({"a.ko": ko("b"), "b.ko": ko("a")})
    with pytest.raises(ImageError, match="a → b → a"):
        modules.order(["a"])


def test_damaged_modules_are_named() -> None:
    with pytest.raises(ImageError, match=r"bad\.ko"):
        ModuleSet({"kernel/bad.ko": b"no ELF"}).order(["bad"])
    with pytest.raises(ImageError, match=r"bad\.ko\.xz"):
        ModuleSet({"kernel/bad.ko.xz": b"no xz"}).order(["bad"])


def test_under_selects_by_directory() -> None:
    assert ModuleSet(FILES).under("kernel/a/", "kernel/b/") == [
        "virtio",
        "virtio_pci",
        "virtio_ring",
    ]


def test_dependency_table_is_read_from_its_end() -> None:
    modules = ModuleSet(FILES).order(["virtio_pci"])
    assert dependency_table(modules).splitlines() == [
        "kernel/a/virtio_ring.ko:",
        "kernel/a/virtio.ko: kernel/a/virtio_ring.ko",
        "kernel/b/virtio-pci.ko: kernel/a/virtio.ko kernel/a/virtio_ring.ko",
    ]


def test_alias_table() -> None:
    modules = ModuleSet(FILES, builtin=["crc16"]).order(["virtio_pci", "lonely"])
    assert alias_table(modules).splitlines() == [
        "alias pci:v00001AF4d* virtio_pci",
        "alias fs-lonely lonely",
        "alias lonely2 lonely",
    ]


@pytest.mark.parametrize("path", ["x/virtio-rng.ko", "virtio_rng.ko.xz", "virtio-rng"])
def test_module_name(path: str) -> None:
    assert module_name(path) == "virtio_rng"
