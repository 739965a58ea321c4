"""Converts a spec to the OCI message of the Kata agent protocol.

The message mirrors the Go structs of the runtime-spec, whose member names differ from
the JSON ones in case only; so the descriptors are the conversion table. What has no
field there (kata-agent-wire.md §4.2) does not reach a Kata agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from protos.kata import oci_pb2
from shim.errors import InvalidArgument

_M = TypeVar("_M", bound=Message)

_RENAMED = {"ociversion": "version"}


def kata_spec(spec: Mapping[str, Any]) -> oci_pb2.Spec:
    """Convert a guest spec (without nulls).

    Raises:
        InvalidArgument: a member of the wrong type or out of range.
    """
    return _fill(oci_pb2.Spec(), spec, "spec")


def kata_process(process: Mapping[str, Any]) -> oci_pb2.Process:
    """Convert a guest process. Raises as :func:`kata_spec`."""
    return _fill(oci_pb2.Process(), process, "process")


def kata_resources(resources: Mapping[str, Any]) -> oci_pb2.LinuxResources:
    """Convert guest resources. Raises as :func:`kata_spec`."""
    return _fill(oci_pb2.LinuxResources(), resources, "resources")


def _fill(message: _M, value: Mapping[str, Any], where: str) -> _M:
    fields = {field.name.lower(): field for field in message.DESCRIPTOR.fields}
    for name, item in value.items():
        lowered = name.lower()
        field = fields.get(_RENAMED.get(lowered, lowered))
        if field is None:
            continue
        try:
            _set(message, field, item, f"{where}.{name}")
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"{where}.{name}: {error}") from error
    return message


def _set(message: Message, field: Any, item: Any, where: str) -> None:
    target = getattr(message, field.name)
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        target.update(item)
    elif field.message_type is not None and field.is_repeated:
        for index, element in enumerate(item):
            _fill(target.add(), element, f"{where}[{index}]")
    elif field.message_type is not None:
        target.SetInParent()
        _fill(target, item, where)
    elif field.is_repeated:
        target.extend(item)
    else:
        setattr(message, field.name, item)
