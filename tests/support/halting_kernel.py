"""A kernel that does nothing: a guest that runs and never answers."""

from __future__ import annotations

import struct
from pathlib import Path

_ADDRESS = 0x100000
_HEADERS = 0x1000
_CODE = b"\xfa\xf4\xeb\xfd"  # cli; hlt; and again
_X86_64, _EXECUTABLE = 62, 2
_LOAD, _NOTE = 1, 4
_PHYS32_ENTRY = 18


def write_halting_kernel(path: Path) -> Path:
    """Write an x86 kernel that halts at its first instruction, started by the PVH protocol.

    Source: the Xen documentation, ``misc/pvh``; the ELF specification.
    """
    note = struct.pack("<III4sI", 4, 4, _PHYS32_ENTRY, b"Xen\0", _ADDRESS)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", _EXECUTABLE, _X86_64, 1, _ADDRESS, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )
    size = len(_CODE) + len(note)
    segments = (
        (_LOAD, 7, _HEADERS, _ADDRESS, size, 0x1000),
        (_NOTE, 4, _HEADERS + len(_CODE), _ADDRESS + len(_CODE), len(note), 4),
    )
    for kind, flags, offset, address, length, align in segments:
        header += struct.pack(
            "<IIQQQQQQ", kind, flags, offset, address, address, length, length, align
        )
    path.write_bytes(header.ljust(_HEADERS, b"\0") + _CODE + note)
    return path
