"""Unpacking of bzImages: each packing, and everything that can be wrong with one."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess

import pytest

from vmm.kernel import KernelError, extract_vmlinux

ELF = b"\x7fELF\x02\x01" + bytes(range(256)) * 40


def bzimage(payload: bytes, *, setup_sectors: int = 3, length: int | None = None) -> bytes:
    head = bytearray((setup_sectors + 1) * 512 if setup_sectors else 5 * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    offset = 96
    struct.pack_into("<II", head, 0x248, offset, len(payload) if length is None else length)
    return bytes(head) + bytes(offset) + payload + b"trailing code"


def by_tool(*argv: str) -> bytes:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} isn't installed")
    return subprocess.run(argv, input=ELF, capture_output=True, check=True).stdout


SIZE = struct.pack("<I", len(ELF))  # appended by the kernel's build


@pytest.mark.parametrize("setup_sectors", [0, 3, 27])
def test_xz(setup_sectors: int) -> None:
    payload = lzma.compress(ELF, check=lzma.CHECK_CRC32) + SIZE
    assert extract_vmlinux(bzimage(payload, setup_sectors=setup_sectors)) == ELF


def test_lzma() -> None:
    assert extract_vmlinux(bzimage(lzma.compress(ELF, lzma.FORMAT_ALONE) + SIZE)) == ELF


def test_gzip() -> None:
    assert extract_vmlinux(bzimage(gzip.compress(ELF))) == ELF


def test_zstd() -> None:
    assert extract_vmlinux(bzimage(by_tool("zstd", "-qc") + SIZE)) == ELF


def test_lz4() -> None:
    assert extract_vmlinux(bzimage(by_tool("lz4", "-lqc") + SIZE)) == ELF


def test_elf_is_returned_as_it_is() -> None:
    assert extract_vmlinux(ELF) is ELF


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "no setup header"),
        (b"MZ" + bytes(4096), "no setup header"),
        (bzimage(b"short", length=1 << 20), "isn't all there"),
        (bzimage(b"", length=0), "isn't all there"),
        (bzimage(b"\x00\x01\x02\x03\x04\x05 what is this"), "unknown way"),
        (bzimage(b"\xfd7zXZ\0" + b"damaged" * 9), "damaged"),
        (bzimage(b"\x1f\x8b" + b"damaged" * 9), "damaged"),
        (bzimage(gzip.compress(b"no ELF")), "holds no ELF"),
    ],
)
def test_bad_images_are_refused_with_the_reason(image: bytes, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        extract_vmlinux(image)
