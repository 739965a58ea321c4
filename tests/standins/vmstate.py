"""Make QEMU save its vhost-user vsock device as it saves the kernel's vhost one.

QEMU marks the first as one that can't be saved, because a daemon's connections can't be. The
VMMs that are stood in for drop the connections too, so that is no reason here. Both devices
are of one class in QEMU (``vhost-vsock-common``), whose way of saving fits either: ring
positions, and after loading the event that tells the guest that its connections are gone.
The mark and that way are in two constants, found in QEMU's memory by their names.

Source: QEMU ``include/migration/vmstate.h``, ``hw/virtio/vhost-vsock-common.c``.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_WORD = 8
_MARK = 1  # the word with ``unmigratable`` in its lowest byte
_FIRST_CALL = 3  # the word that the functions begin at
_PARTS = 3  # what the kernel's device has: after loading, before saving, fields
_WORDS = 13
_OURS, _KERNELS = b"vhost-user-vsock", b"virtio-vhost_vsock"


class NotFound(Exception):
    """This QEMU is built in another way."""


@dataclass(frozen=True)
class _Description:
    """A ``VMStateDescription``: where it is, and its words."""

    address: int
    words: tuple[int, ...]


def make_vsock_savable(pid: int) -> None:
    """Change a running QEMU of ours; once more changes nothing.

    Args:
        pid: of the process.

    Raises:
        NotFound: the constants are not there.
        OSError: its memory can't be read or written.
    """
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        parts = dict(_parts(pid, memory))
        ours = _only([d for d in _descriptions(parts, _OURS) if d.words[_MARK] in (0, 1)])
        if ours.words[_MARK] == 0:
            return
        kernels = _only([d for d in _descriptions(parts, _KERNELS) if d.words[_MARK] == 0])
        used = [i for i in range(_FIRST_CALL, _WORDS) if kernels.words[i]][:_PARTS]
        for index in used:
            os.pwrite(memory, struct.pack("<Q", kernels.words[index]), ours.address + index * _WORD)
        os.pwrite(memory, bytes(_WORD), ours.address + _MARK * _WORD)
    finally:
        os.close(memory)


def _only(found: list[_Description]) -> _Description:
    if len(found) != 1:
        raise NotFound(f"{len(found)} descriptions of a vsock device in QEMU, not one")
    return found[0]


def _parts(pid: int, memory: int) -> Iterator[tuple[int, bytes]]:
    """Return address and content of each part of the program."""
    program = os.readlink(f"/proc/{pid}/exe")
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and fields[5] == program and "x" not in fields[1]:
                start, end = (int(text, 16) for text in fields[0].split("-"))
                yield start, os.pread(memory, end - start, start)


def _descriptions(parts: dict[int, bytes], name: bytes) -> Iterator[_Description]:
    """Return what may be a description of that name."""
    for start, data in parts.items():
        for match in re.finditer(re.escape(name + b"\0"), data):
            yield from _pointing_to(parts, start + match.start())


def _pointing_to(parts: dict[int, bytes], address: int) -> Iterator[_Description]:
    for start, data in parts.items():
        for match in re.finditer(re.escape(struct.pack("<Q", address)), data):
            at = match.start()
            if at % _WORD == 0 and at + _WORDS * _WORD <= len(data):
                words = struct.unpack_from(f"<{_WORDS}Q", data, at)
                yield _Description(start + at, words)
