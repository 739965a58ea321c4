"""Hypothesis strategies and comparisons between protobuf's messages and lite's."""

from __future__ import annotations

import importlib
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as PbMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from protos import lite

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_FIXED32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_FIXED64: (0, (1 << 64) - 1),
}


def pairs(*stems: str) -> list[tuple[str, Any, type[PbMessage]]]:
    """Every message of the named table modules as (name, table, protobuf class)."""
    found = []
    for stem in stems:
        tables = importlib.import_module(f"protos.tables.{stem}")
        package, _, name = stem.partition("_")
        importlib.import_module(f"protos.{package}.{name or package}_pb2")
        from google.protobuf.descriptor_pool import Default

        for table in vars(tables).values():
            if isinstance(table, dict) and 0 in table:
                descriptor = Default().FindMessageTypeByName(table[0])
                found.append((table[0], table, GetMessageClass(descriptor)))
    return found


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        if field.type == field.TYPE_ENUM and field.enum_type is not None:
            numbers = [value.number for value in field.enum_type.values]
            return st.sampled_from(numbers) | st.integers(low, high)
        return st.integers(low, high)
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    if field.type == field.TYPE_STRING:
        return st.text(max_size=20)
    if field.type == field.TYPE_BYTES:
        return st.binary(max_size=300)
    return st.floats(allow_nan=False, width=64 if field.type == field.TYPE_DOUBLE else 32)


def values(descriptor: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts of field values of a message type, any field possibly missing."""
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            key, value = message.fields
            inner = values(value.message_type) if value.message_type else _scalar(value)
            strategy: st.SearchStrategy[Any] = st.dictionaries(_scalar(key), inner, max_size=3)
        else:
            strategy = values(message) if message is not None else _scalar(field)
            if field.is_repeated:
                strategy = st.lists(strategy, max_size=3)
        optional[field.name] = strategy
    return st.fixed_dictionaries({}, optional=optional)


def as_dict(message: PbMessage) -> dict[str, Any]:
    """The set fields of a protobuf message as plain values."""
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            nested = field.message_type.fields[1].message_type is not None
            out[field.name] = {key: as_dict(v) if nested else v for key, v in value.items()}
        elif field.message_type is not None:
            out[field.name] = [as_dict(v) for v in value] if field.is_repeated else as_dict(value)
        else:
            out[field.name] = list(value) if field.is_repeated else value
    return out


def build(cls: type[PbMessage], fields: dict[str, Any]) -> PbMessage:
    """A protobuf message with the given field values."""
    message = cls()
    for name, value in fields.items():
        field = cls.DESCRIPTOR.fields_by_name[name]
        kind: Any = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            nested = kind.fields[1].message_type
            for key, item in value.items():
                if nested is not None:
                    getattr(message, name)[key].CopyFrom(build(GetMessageClass(nested), item))
                else:
                    getattr(message, name)[key] = item
        elif kind is not None:
            sub = GetMessageClass(kind)
            if field.is_repeated:
                getattr(message, name).extend(build(sub, item) for item in value)
            else:
                getattr(message, name).CopyFrom(build(sub, value))
        elif field.is_repeated:
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def same(decoded: lite.Message, message: PbMessage) -> bool:
    """Whether lite's view of a message equals protobuf's, defaults included."""
    for field in message.DESCRIPTOR.fields:
        ours, theirs = decoded[field.name], getattr(message, field.name)
        kind = field.message_type
        if field.has_presence and message.HasField(field.name) != (field.name in decoded):
            return False
        if kind is not None and kind.GetOptions().map_entry:
            if kind.fields[1].message_type is None:
                equal = ours == dict(theirs)
            else:
                equal = ours.keys() == set(theirs) and all(same(ours[k], theirs[k]) for k in ours)
        elif kind is not None and field.is_repeated:
            equal = len(ours) == len(theirs) and all(map(same, ours, theirs))
        elif kind is not None:
            equal = ours is None or same(ours, theirs)
        elif field.is_repeated:
            equal = repr(ours) == repr(list(theirs))
        else:
            equal = repr(ours) == repr(theirs)  # tells 0 from False and NaN from nothing
        if not equal:
            return False
    return True
