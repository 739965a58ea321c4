"""The ELF reader against real programs, and against damaged ones."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.image.elf import ElfError, is_elf, needed, pvh_entry, section

PROGRAM = Path(sys.executable).resolve().read_bytes()


def readelf(option: str) -> str:
    path = Path(sys.executable).resolve()
    return subprocess.run(
        ["readelf", "-W", option, path], capture_output=True, check=True, text=True
    ).stdout


def test_needed_names_what_readelf_names() -> None:
    assert needed(PROGRAM) == re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("-d"))
    assert "libc.so.6" in needed(PROGRAM)


def test_section_is_found_by_its_name() -> None:
    assert section(PROGRAM, ".interp").rstrip(b"\0").startswith(b"/lib64/ld-linux")
    assert section(PROGRAM, ".no-such-section") == b""


def test_a_program_has_no_pvh_entry() -> None:
    assert pvh_entry(PROGRAM) is None


@pytest.mark.parametrize("read", [needed, pvh_entry, lambda data: section(data, "x")])
def test_other_files_are_refused(read: object) -> None:
    assert callable(read)
    for data in (b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), PROGRAM[:40]):
        with pytest.raises(ElfError):
            read(data)


def test_files_of_the_other_byte_order() -> None:
    names = b"\0.modinfo\0.shstrtab\0"
    data = b"\x7fELF\x02\x02\x01" + bytes(9)
    data += struct.pack(
        ">HHIQQQIHHHHHH", 1, 22, 1, 0, 0, 64 + 4 + len(names), 0, 64, 0, 0, 64, 3, 2
    )
    data += b"a=b\0" + names + bytes(64)
    for name, offset, size in ((1, 64, 4), (10, 68, len(names))):
        data += struct.pack(">IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
    assert section(data, ".modinfo") == b"a=b\0"
    assert needed(data) == []


@given(st.sampled_from([b"\1", b"\2"]), st.binary(max_size=200))
def test_damaged_headers_raise_nothing_else(order: bytes, noise: bytes) -> None:
    data = b"\x7fELF\x02" + order + noise
    assert is_elf(data)
    for read in (needed, pvh_entry, lambda data: section(data, "x")):
        try:
            read(data)
        except ElfError:
            continue
