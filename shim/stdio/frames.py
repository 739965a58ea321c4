"""StdioFrame, the message of our stdio stream, encoded and decoded by hand.

Output is the shim's only bulk traffic. A protobuf runtime would copy every chunk
twice; here the few prefix bytes are written by hand and the data stays a view of
the buffer that came off the wire.

Source: protos/katapy/extension.proto; protobuf encoding (varint, wire types).
"""

from __future__ import annotations

from typing import NamedTuple

STDIN = 1
STDOUT = 2
STDERR = 3

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_EMPTY = memoryview(b"")


class FrameError(ValueError):
    """The peer's bytes are not a StdioFrame."""


class Frame(NamedTuple):
    """What a received StdioFrame says.

    ``data`` is a view of the received payload, not a copy.
    """

    channel: int
    data: memoryview
    eof: bool
    credit: int


def attach_frame(container_id: str, exec_id: str, credit: int) -> bytes:
    """Encode the first frame, which names the process.

    Args:
        container_id: container the process belongs to.
        exec_id: exec id, or "" for the container's init.
        credit: bytes the agent may send ahead on stdout, and on stderr.
    """
    return (
        _string(0x0A, container_id.encode())
        + _string(0x12, exec_id.encode())
        + b"\x30"
        + _varint(credit)
    )


def data_frame(channel: int, data: bytes | memoryview) -> bytes:
    """Encode bytes that flow on ``channel``."""
    return b"".join((b"\x18", _varint(channel), b"\x22", _varint(len(data)), data))


def eof_frame(channel: int) -> bytes:
    """Encode the end of ``channel``."""
    return b"\x18" + _varint(channel) + b"\x28\x01"


def credit_frame(channel: int, credit: int) -> bytes:
    """Encode that ``credit`` more bytes may be sent on ``channel``."""
    return b"\x18" + _varint(channel) + b"\x30" + _varint(credit)


def decode_frame(payload: bytes) -> Frame:
    """Decode one frame; fields that are not known are skipped.

    Raises:
        FrameError: truncated or malformed.
    """
    view = memoryview(payload)
    channel, eof, credit, data = 0, 0, 0, _EMPTY
    position, end = 0, len(payload)
    while position < end:
        key, position = _read_varint(payload, position)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, position = _read_varint(payload, position)
            if key == 0x18:
                channel = value
            elif key == 0x28:
                eof = value
            elif key == 0x30:
                credit = value
            continue
        if wire_type == _LENGTH:
            length, position = _read_varint(payload, position)
        elif wire_type == _FIXED64:
            length = 8
        elif wire_type == _FIXED32:
            length = 4
        else:
            raise FrameError(f"StdioFrame: wire type {wire_type} at byte {position}")
        if position + length > end:
            raise FrameError(f"StdioFrame: a field of {length} bytes at {position} of {end}")
        if key == 0x22:
            data = view[position : position + length]
        position += length
    return Frame(channel, data, bool(eof), credit)


def _string(key: int, value: bytes) -> bytes:
    return bytes((key,)) + _varint(len(value)) + value if value else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(payload) or shift > 63:
            raise FrameError(f"StdioFrame: bad varint at byte {position}")
        byte = payload[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
