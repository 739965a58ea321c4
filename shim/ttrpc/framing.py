"""Frames of ttrpc: a ten-byte big-endian header and a payload. Sans-IO.

Header: payload length (4 bytes), stream id (4), type (1), flags (1).

Source: ttrpc PROTOCOL.md.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview
    Frame = tuple[int, int, int, bytes | None]

HEADER_SIZE = 10
MESSAGE_MAX = 4 << 20

REQUEST = 1
RESPONSE = 2
DATA = 3

FLAG_REMOTE_CLOSED = 1
FLAG_REMOTE_OPEN = 2
FLAG_NO_DATA = 4


def encode_header(length: int, stream_id: int, kind: int, flags: int) -> bytes:
    """Encode a frame header; ``length`` is the size of the payload in bytes."""
    return (length << 48 | stream_id << 16 | kind << 8 | flags).to_bytes(HEADER_SIZE, "big")


def encode_frame(stream_id: int, kind: int, flags: int, payload: bytes) -> bytes:
    """Encode a whole frame; ``payload`` is at most MESSAGE_MAX bytes."""
    return encode_header(len(payload), stream_id, kind, flags) + payload


class FrameDecoder:
    """Cuts a byte stream into frames.

    A frame with more than MESSAGE_MAX bytes of payload is discarded and reported as
    soon as its header is complete, with None for the payload.
    """

    __slots__ = ("_discard", "_filled", "_header", "_kind_flags", "_payload", "_stream_id")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget a frame that is only partly read."""
        self._header = bytearray()
        self._payload: memoryview | None = None  # of its full length
        self._filled = 0
        self._stream_id = 0
        self._kind_flags = 0
        self._discard = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a frame."""
        return not self._header and self._payload is None and not self._discard

    def feed(self, data: Buffer) -> list[Frame]:
        """Take bytes in; give the frames they complete as (stream id, type, flags, payload)."""
        frames: list[Frame] = []
        view = memoryview(data)
        pos, end = 0, len(view)
        while pos < end:
            if self._payload is not None:
                filled = self._filled
                take = min(len(self._payload) - filled, end - pos)
                self._payload[filled : filled + take] = view[pos : pos + take]
                pos += take
                self._filled = filled + take
                if self._filled == len(self._payload):
                    payload, self._payload = bytes(self._payload), None
                    frames.append(
                        (self._stream_id, self._kind_flags >> 8, self._kind_flags & 0xFF, payload)
                    )
                continue
            if self._discard:
                take = min(self._discard, end - pos)
                self._discard -= take
                pos += take
                continue
            if self._header or end - pos < HEADER_SIZE:
                take = min(HEADER_SIZE - len(self._header), end - pos)
                self._header += view[pos : pos + take]
                pos += take
                if len(self._header) < HEADER_SIZE:
                    break
                header = int.from_bytes(self._header, "big")
                self._header.clear()
            else:
                header = int.from_bytes(view[pos : pos + HEADER_SIZE], "big")
                pos += HEADER_SIZE
            length = header >> 48
            stream_id = header >> 16 & 0xFFFF_FFFF
            kind_flags = header & 0xFFFF
            if length > MESSAGE_MAX:
                self._discard = length
                frames.append((stream_id, kind_flags >> 8, kind_flags & 0xFF, None))
            elif length <= end - pos:
                payload = bytes(view[pos : pos + length])
                frames.append((stream_id, kind_flags >> 8, kind_flags & 0xFF, payload))
                pos += length
            else:
                self._payload = memoryview(bytearray(length))
                self._filled = 0
                self._stream_id = stream_id
                self._kind_flags = kind_flags
        return frames
