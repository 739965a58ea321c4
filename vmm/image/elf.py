"""The little of ELF files an image is put together by (``elf(5)``, 64 bit)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_NOTE_XEN_PVH_ENTRY = 18


class ElfError(ValueError):
    """Not a 64-bit ELF file, or a damaged one."""


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def is_elf(data: bytes) -> bool:
    """Tell whether the bytes begin like a 64-bit ELF file."""
    return data[:6] in (b"\x7fELF\x02\x01", b"\x7fELF\x02\x02")


def _order(data: bytes) -> str:
    """The file's byte order as :mod:`struct` spells it."""
    if not is_elf(data):
        raise ElfError("not a 64-bit ELF file")
    return "<" if data[5] == 1 else ">"


def needed(data: bytes) -> list[str]:
    """Return the shared libraries an ELF file names as needed, in order.

    Raises:
        ElfError: not an ELF file, or a damaged one.
    """
    segments = _segments(data)
    dynamic = next((s for s in segments if s.kind == _PT_DYNAMIC), None)
    if dynamic is None:
        return []
    names, strings = [], 0
    try:
        for tag, value in struct.iter_unpack(f"{_order(data)}QQ", _part(data, dynamic)):
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                names.append(value)
            elif tag == _DT_STRTAB:
                strings = _file_offset(segments, value)
    except struct.error as error:
        raise ElfError(f"bad dynamic section: {error}") from error
    return [_string(data, strings + name) for name in names]


def section(data: bytes, name: str) -> bytes:
    """Return the contents of a section, empty when there is none of that name.

    Raises:
        ElfError: not an ELF file, or a damaged one.
    """
    order = _order(data)
    try:
        (table,) = struct.unpack_from(f"{order}Q", data, 0x28)
        size, count, names = struct.unpack_from(f"{order}HHH", data, 0x3A)
        entry = struct.Struct(f"{order}IIQQQQ")
        headers = [entry.unpack_from(data, table + i * size) for i in range(count)]
        for header in headers:
            if _string(data, headers[names][4] + header[0]) == name:
                return data[header[4] : header[4] + header[5]]
    except (struct.error, IndexError) as error:
        raise ElfError(f"bad section table: {error}") from error
    return b""


def pvh_entry(data: bytes) -> int | None:
    """Return the address a VMM starts a PVH kernel at; None when the kernel can't do PVH.

    Source: the Xen ELF notes, XEN_ELFNOTE_PHYS32_ENTRY.

    Raises:
        ElfError: not an ELF file, or a damaged one.
    """
    for segment in _segments(data):
        if segment.kind == _PT_NOTE:
            for owner, kind, value in _notes(_part(data, segment)):
                if (owner, kind) == (b"Xen", _NOTE_XEN_PVH_ENTRY):
                    return int.from_bytes(value, "little")
    return None


def _segments(data: bytes) -> list[_Segment]:
    order = _order(data)
    try:
        (table,) = struct.unpack_from(f"{order}Q", data, 0x20)
        size, count = struct.unpack_from(f"{order}HH", data, 0x36)
        found = []
        for i in range(count):
            kind, _, offset, address, _, length = struct.unpack_from(
                f"{order}IIQQQQ", data, table + i * size
            )
            found.append(_Segment(kind, offset, address, length))
    except struct.error as error:
        raise ElfError(f"bad program headers: {error}") from error
    return found


def _part(data: bytes, segment: _Segment) -> bytes:
    return data[segment.offset : segment.offset + segment.size]


def _file_offset(segments: list[_Segment], address: int) -> int:
    for s in segments:
        if s.kind == _PT_LOAD and s.address <= address < s.address + s.size:
            return address - s.address + s.offset
    raise ElfError(f"no segment holds address {address:#x}")


def _string(data: bytes, offset: int) -> str:
    end = data.find(b"\0", offset)
    if end < 0:
        raise ElfError("unterminated string")
    return data[offset:end].decode("ascii", "replace")


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    position = 0
    while position + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, position)
        name = position + 12
        value = name + -(-name_size // 4) * 4
        yield data[name : name + name_size].rstrip(b"\0"), kind, data[value : value + size]
        position = value + -(-size // 4) * 4
