"""Connections on a line that has none (sans-IO).

A virtio-serial port is one endless stream of bytes in each direction. The host
begins each of its connections with a preface of 24 bytes, `MAGIC` and 16 random
ones; the agent drops what belonged to the previous connection and echoes the
preface, and the host discards everything that comes before its echo.

The preface is recognised where a frame would begin (a frame can't begin with
0xff: its length would be beyond the limit), and anywhere once the line is known
to be out of step. Its one blind spot, a host that went away in the middle of a
frame and came back unnoticed, is covered by `suspect`: the last bytes received
look like a preface inside a frame. A host waits for its echo, so if the line stays
quiet after them, `accept` takes them for one.

Source: docs/architecture.md, "Agent channel".
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Buffer = bytes | memoryview

MAGIC = b"\xffKATAPY\xff"
PREFACE_SIZE = 24
HEADER_SIZE = 10


class Resync:
    """Splits what a line delivers into prefaces and the bytes of ttrpc frames."""

    __slots__ = ("_header", "_left", "_scan", "_tail")

    def __init__(self) -> None:
        self.lose()

    def lose(self) -> None:
        """The line is out of step: ignore everything until the next preface."""
        self._scan: bytearray | None = bytearray()
        self._header = bytearray()
        self._left = 0
        self._tail = b""

    @property
    def suspect(self) -> bool:
        """Whether the bytes received last could be a preface inside a frame."""
        inside = self._scan is None and (self._left or self._header)
        return bool(inside) and self._tail.startswith(MAGIC)

    def accept(self) -> bytes:
        """Take the suspect bytes for a preface and return it; frames follow."""
        preface = self._tail
        self.lose()
        self._scan = None
        return preface

    def feed(self, data: Buffer) -> Iterator[tuple[bool, Buffer]]:
        """Split the next bytes of the line.

        Yields:
            (True, preface) where a connection begins, (False, bytes) for frames, which are
            slices of what was given.
        """
        self._tail = (self._tail + bytes(data[-PREFACE_SIZE:]))[-PREFACE_SIZE:]
        position = 0
        while position < len(data):
            if self._scan is not None:
                self._scan += data[position:]
                found = self._scan.find(MAGIC)
                if found < 0:
                    del self._scan[: max(0, len(self._scan) - len(MAGIC) + 1)]
                    return
                del self._scan[:found]
                if len(self._scan) < PREFACE_SIZE:
                    return
                preface = bytes(self._scan[:PREFACE_SIZE])
                position = len(data) - (len(self._scan) - PREFACE_SIZE)
                self._scan = None
                self._header.clear()
                self._left = 0
                yield True, preface
                continue
            end = self._frames(data, position)
            if end > position:
                yield False, data[position:end]
            if end < len(data):
                self._scan = bytearray()
            position = end

    def _frames(self, data: Buffer, position: int) -> int:
        """Follow frames from a position; gives where a byte 0xff begins one, or the end."""
        size = len(data)
        while position < size:
            if self._left:
                step = min(self._left, size - position)
                self._left -= step
                position += step
                continue
            if not self._header and data[position] == 0xFF:
                return position
            step = min(HEADER_SIZE - len(self._header), size - position)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == HEADER_SIZE:
                self._left = int.from_bytes(self._header[:4], "big")
                self._header.clear()
        return position
