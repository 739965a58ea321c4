"""A small protobuf codec driven by tables, for processes that must start fast.

The guest agent and the shim's stub can't afford to import the protobuf runtime
(tens of milliseconds, twelve times that under emulation). This module imports
nothing; ``protos/generate`` makes one table module per .proto file they need.

A table describes one message type. It is a dict of field number to
``(name, kind, label, sub)`` in ascending order, with the full message name under
key 0, which no field can have. ``kind`` is the type number of descriptor.proto.
``label`` is one of the constants below. ``sub`` is the table of a message field,
``(key kind, value kind, value table)`` of a map, else None. Tables form no cycles,
so the nesting of a message is bounded by its table.

Source: protobuf encoding documentation; descriptor.proto.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Table = dict[int, Any]
    Buffer = bytes | bytearray | memoryview

IMPLICIT = 0  # singular; its default value is the same as absent
EXPLICIT = 1  # singular; "optional", member of a oneof, or a message
REPEATED = 2
MAP = 3

DOUBLE = 1
FLOAT = 2
INT64 = 3
UINT64 = 4
INT32 = 5
FIXED64 = 6
FIXED32 = 7
BOOL = 8
STRING = 9
MESSAGE = 11
BYTES = 12
UINT32 = 13
ENUM = 14
SFIXED32 = 15
SFIXED64 = 16
SINT32 = 17
SINT64 = 18

_WIRE_TYPE = (None, 1, 5, 0, 0, 0, 1, 5, 0, 2, None, 2, 2, 0, 0, 5, 1, 0, 0)
_DEFAULT = (None, 0.0, 0.0, 0, 0, 0, 0, 0, False, "", None, None, b"", 0, 0, 0, 0, 0, 0)
_INT32_RANGE = (-0x8000_0000, 0x7FFF_FFFF)
_INT64_RANGE = (-0x8000_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF)
_UINT32_RANGE = (0, 0xFFFF_FFFF)
_UINT64_RANGE = (0, 0xFFFF_FFFF_FFFF_FFFF)
_RANGE = {
    INT64: _INT64_RANGE,
    UINT64: _UINT64_RANGE,
    INT32: _INT32_RANGE,
    FIXED64: _UINT64_RANGE,
    FIXED32: _UINT32_RANGE,
    UINT32: _UINT32_RANGE,
    ENUM: _INT32_RANGE,
    SFIXED32: _INT32_RANGE,
    SFIXED64: _INT64_RANGE,
    SINT32: _INT32_RANGE,
    SINT64: _INT64_RANGE,
}
_UNKNOWN_GROUP_DEPTH = 100


class DecodeError(ValueError):
    """The bytes are not a valid protobuf encoding of the message."""


class EncodeError(ValueError):
    """A value does not fit its field, or the message has no such field."""


class Message(dict):  # type: ignore[type-arg]
    """A decoded message: the fields present on the wire, by name.

    Indexing a field that is absent gives its proto3 default (a fresh list or dict
    for repeated fields and maps, None for a message) and stores nothing; a name the
    message type does not have raises KeyError.
    """

    __slots__ = ("table",)

    def __init__(self, table: Table) -> None:
        self.table = table

    def __missing__(self, name: str) -> Any:
        for number, field in self.table.items():
            if number and field[0] == name:
                label = field[2]
                if label == REPEATED:
                    return []
                if label == MAP:
                    return {}
                return _DEFAULT[field[1]]
        raise KeyError(f"{self.table[0]} has no field {name!r}")


def decode(table: Table, data: Buffer) -> Message:
    """Decode one message.

    Args:
        table: the message type.
        data: the complete encoding.

    Returns:
        The message; unknown fields are skipped.

    Raises:
        DecodeError: ``data`` is malformed.
    """
    message = Message(table)
    _decode_into(message, table, data, 0, len(data))
    return message


def encode(table: Table, values: Mapping[str, Any]) -> bytes:
    """Encode one message, fields in ascending order.

    Args:
        table: the message type.
        values: field values by name; sub-messages are mappings. None means absent.

    Raises:
        EncodeError: a name or value does not fit the message type.
    """
    parts: list[bytes] = []
    _encode_into(parts, table, values)
    return b"".join(parts)


def encode_varint(value: int) -> bytes:
    """Encode an unsigned varint; ``value`` is below 2**64 and not negative."""
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    """Decode the varint at ``pos``; gives its value modulo 2**64 and the position after it.

    Raises:
        DecodeError: it runs past ``end`` or is longer than ten bytes.
    """
    result = shift = 0
    while pos < end:
        byte = data[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == 63:
                result &= 0xFFFF_FFFF_FFFF_FFFF  # as protobuf takes it
            return result, pos
        shift += 7
        if shift > 63:
            raise DecodeError("varint is longer than ten bytes")
    raise DecodeError("truncated varint")


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def _decode_into(message: Message, table: Table, data: Buffer, pos: int, end: int) -> None:
    while pos < end:
        tag = data[pos]
        if tag < 0x80:
            pos += 1
        else:
            tag, pos = decode_tag(data, pos, end)
        number = tag >> 3
        wire_type = tag & 7
        if not number:
            raise DecodeError(f"{table[0]}: field number 0")
        field = table.get(number)
        if field is None:
            pos = skip_field(data, pos, end, number, wire_type)
            continue
        name, kind, label, sub = field
        if label == MAP:
            if wire_type != 2:
                pos = skip_field(data, pos, end, number, wire_type)
                continue
            start, pos = decode_span(data, pos, end)
            key, value = _decode_map_entry(sub, data, start, pos)
            message.setdefault(name, {})[key] = value
        elif wire_type == _WIRE_TYPE[kind]:
            if kind == MESSAGE:
                start, pos = decode_span(data, pos, end)
                if label == REPEATED:
                    item = Message(sub)
                    message.setdefault(name, []).append(item)
                else:  # a second occurrence is merged into the first
                    item = message.setdefault(name, Message(sub))
                _decode_into(item, sub, data, start, pos)
                continue
            value, pos = _decode_scalar(kind, data, pos, end)
            if label == REPEATED:
                message.setdefault(name, []).append(value)
            else:
                message[name] = value
        elif wire_type == 2 and label == REPEATED:
            start, pos = decode_span(data, pos, end)
            values = message.setdefault(name, [])
            while start < pos:
                value, start = _decode_scalar(kind, data, start, pos)
                values.append(value)
        else:
            pos = skip_field(data, pos, end, number, wire_type)


def decode_tag(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    """Decode the tag at ``pos`` (field number << 3 | wire type); gives the position after it.

    Raises:
        DecodeError: it is truncated or the field number does not fit 29 bits.
    """
    tag, after = decode_varint(data, pos, end)
    if tag > 0xFFFF_FFFF or after - pos > 5:
        raise DecodeError("field number exceeds 29 bits")
    return tag, after


def decode_span(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    """Decode the length at ``pos``; gives start and end of what it counts.

    Raises:
        DecodeError: the length is truncated or runs past ``end``.
    """
    length, pos = decode_varint(data, pos, end)
    if length > end - pos:
        raise DecodeError(f"length {length} runs past the end ({end - pos} bytes left)")
    return pos, pos + length


def _decode_scalar(kind: int, data: Buffer, pos: int, end: int) -> tuple[Any, int]:
    wire_type = _WIRE_TYPE[kind]
    if wire_type == 2:
        start, pos = decode_span(data, pos, end)
        raw = bytes(data[start:pos])
        if kind == BYTES:
            return raw, pos
        try:
            return raw.decode(), pos
        except UnicodeDecodeError as error:
            raise DecodeError(f"string is not UTF-8: {error.reason}") from None
    if wire_type == 0:
        value, pos = decode_varint(data, pos, end)
        if kind == BOOL:
            return value != 0, pos
        if kind == UINT64:
            return value, pos
        if kind == INT64:
            return (value ^ 1 << 63) - (1 << 63), pos
        if kind == SINT64:
            return value >> 1 ^ -(value & 1), pos
        value &= 0xFFFF_FFFF
        if kind == UINT32:
            return value, pos
        if kind == SINT32:
            return value >> 1 ^ -(value & 1), pos
        return (value ^ 1 << 31) - (1 << 31), pos
    after = pos + (8 if wire_type == 1 else 4)
    if after > end:
        raise DecodeError("truncated fixed-size value")
    raw = bytes(data[pos:after])
    if kind in (DOUBLE, FLOAT):
        import struct  # rare, and not worth loading at start

        return struct.unpack("<d" if kind == DOUBLE else "<f", raw)[0], after
    return int.from_bytes(raw, "little", signed=kind in (SFIXED32, SFIXED64)), after


def _decode_map_entry(sub: Any, data: Buffer, pos: int, end: int) -> tuple[Any, Any]:
    key_kind, value_kind, value_table = sub
    entry_table = {
        0: "map entry",
        1: ("key", key_kind, EXPLICIT, None),
        2: ("value", value_kind, EXPLICIT, value_table),
    }
    entry = Message(entry_table)
    _decode_into(entry, entry_table, data, pos, end)
    value = entry["value"]
    return entry["key"], Message(value_table) if value is None else value


def skip_field(data: Buffer, pos: int, end: int, number: int, wire_type: int) -> int:
    """Give the position after a field, groups included, whose tag has just been read.

    Raises:
        DecodeError: the field is malformed or truncated.
    """
    groups: list[int] = []
    while True:
        if wire_type == 0:
            pos = decode_varint(data, pos, end)[1]
        elif wire_type == 1:
            pos += 8
        elif wire_type == 2:
            pos = decode_span(data, pos, end)[1]
        elif wire_type == 3:
            groups.append(number)
            if len(groups) > _UNKNOWN_GROUP_DEPTH:
                raise DecodeError("groups nest too deep")
        elif wire_type == 4:
            if not groups or groups.pop() != number:
                raise DecodeError("end of a group that was not begun")
        elif wire_type == 5:
            pos += 4
        else:
            raise DecodeError(f"unknown wire type {wire_type}")
        if pos > end:
            raise DecodeError("truncated field")
        if not groups:
            return pos
        tag, pos = decode_tag(data, pos, end)
        number = tag >> 3
        wire_type = tag & 7
        if not number:
            raise DecodeError("field number 0")


def _encode_into(parts: list[bytes], table: Table, values: Mapping[str, Any]) -> None:
    seen = 0
    for number, field in table.items():
        if not number or field[0] not in values:
            continue
        seen += 1
        name, kind, label, sub = field
        value = values[name]
        if value is None:
            continue
        try:
            if label == MAP:
                for key, item in value.items():
                    entry: list[bytes] = []
                    _encode_field(entry, 1, sub[0], key, None)
                    _encode_field(entry, 2, sub[1], item, sub[2])
                    _append_counted(parts, number, entry)
            elif label != REPEATED:
                if label == EXPLICIT or value or (kind <= FLOAT and str(value) == "-0.0"):
                    _encode_field(parts, number, kind, value, sub)
            elif _WIRE_TYPE[kind] == 2:
                for item in value:
                    _encode_field(parts, number, kind, item, sub)
            elif value:
                _append_counted(parts, number, [_scalar(kind, item) for item in value])
        except (TypeError, AttributeError, UnicodeEncodeError, OverflowError) as error:
            raise EncodeError(f"{table[0]}.{name}: {error}") from error
    if seen != len(values):
        names = {field[0] for number, field in table.items() if number}
        raise EncodeError(f"{table[0]} has no field {sorted(set(values) - names)}")


def _encode_field(parts: list[bytes], number: int, kind: int, value: Any, sub: Any) -> None:
    if kind == MESSAGE:
        nested: list[bytes] = []
        _encode_into(nested, sub, value)
        _append_counted(parts, number, nested)
    elif kind in (STRING, BYTES):
        _append_counted(parts, number, [_scalar(kind, value)])
    else:
        parts.append(encode_varint(number << 3 | _WIRE_TYPE[kind]))  # type: ignore[operator]
        parts.append(_scalar(kind, value))


def _append_counted(parts: list[bytes], number: int, payload: list[bytes]) -> None:
    parts.append(encode_varint(number << 3 | 2))
    parts.append(encode_varint(sum(map(len, payload))))
    parts.extend(payload)


def _scalar(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return value.encode()  # type: ignore[no-any-return]
    if kind == BYTES:
        return value if type(value) is bytes else bytes(memoryview(value))
    if kind == BOOL:
        return b"\x01" if value else b"\x00"
    if kind in (DOUBLE, FLOAT):
        import struct  # rare, and not worth loading at start

        return struct.pack("<d" if kind == DOUBLE else "<f", value)
    low, high = _RANGE[kind]
    if not low <= value <= high:
        raise EncodeError(f"{value} is outside {low}..{high}")
    wire_type = _WIRE_TYPE[kind]
    if wire_type == 1:
        return int(value).to_bytes(8, "little", signed=low < 0)
    if wire_type == 5:
        return int(value).to_bytes(4, "little", signed=low < 0)
    if kind in (SINT32, SINT64):
        value = value << 1 ^ value >> 63
    return encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF)
