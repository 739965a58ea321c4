"""Kata's protobuf form of an OCI spec, turned back into config.json.

Kata's messages name their fields after the Go structs, so OCI's JSON name is the
same with its leading capitals lowered. What protobuf leaves out because it is zero
is left out here too, except where the OCI schema requires a value.

Source: the wire tables of Kata's oci.proto; OCI runtime-spec config.md.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from protos.lite import Message

_RENAMED = {"Version": "ociVersion", "Pagesize": "pageSize", "errnoret": "errnoRet"}
_REQUIRED: dict[str, dict[str, Any]] = {
    "grpc.LinuxIDMapping": {"hostID": 0, "containerID": 0, "size": 0},
    "grpc.POSIXRlimit": {"hard": 0, "soft": 0},
    "grpc.User": {"uid": 0, "gid": 0},
    "grpc.LinuxSeccompArg": {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
    "grpc.LinuxDeviceCgroup": {"allow": False},
    "grpc.Box": {"height": 0, "width": 0},
    "grpc.LinuxPids": {"limit": 0},
    "grpc.LinuxThrottleDevice": {"major": 0, "minor": 0, "rate": 0},
    "grpc.LinuxWeightDevice": {"major": 0, "minor": 0},
    "grpc.Process": {"cwd": "/"},
}
_UNKNOWN_TO_OCI = ("username", "solaris", "windows")


def oci_name(field: str) -> str:
    """OCI's JSON name of a field of Kata's messages: UIDMappings gives uidMappings."""
    renamed = _RENAMED.get(field)
    if renamed is not None:
        return renamed
    capitals = 0
    while capitals < len(field) and field[capitals].isupper():
        capitals += 1
    if 1 < capitals < len(field) and field[capitals].isalpha():
        capitals -= 1  # the last capital begins the next word
    return field[:capitals].lower() + field[capitals:]


def to_oci(message: Message) -> dict[str, Any]:
    """Convert a message and all it holds; maps keep their keys."""
    result: dict[str, Any] = dict(_REQUIRED.get(message.table[0], {}))
    kind = message.table[0]
    for field, value in message.items():
        name = oci_name(field)
        if name in _UNKNOWN_TO_OCI or (value in ("", 0, [], None) and value is not False):
            continue
        if kind == "grpc.LinuxDeviceCgroup" and name in ("major", "minor") and value <= 0:
            continue  # a wildcard
        result[name] = _value(value)
    if kind == "grpc.LinuxDevice" and result.get("type") in ("c", "b", "u"):
        result.setdefault("major", 0)
        result.setdefault("minor", 0)
    return result


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) for item in value]
    if hasattr(value, "table"):
        return to_oci(value)
    return value
