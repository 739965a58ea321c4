"""Loads the OCI runtime spec of a bundle and checks what the rest relies on.

Source: OCI runtime-spec config.md, config-linux.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shim.errors import InvalidArgument

Spec = dict[str, Any]

_SHAPE: dict[str, Any] = {
    "process": {
        "args": [str],
        "env": [str],
        "cwd": str,
        "user": {"uid": int, "gid": int, "additionalGids": [int]},
        "rlimits": [{"type": str, "hard": int, "soft": int}],
        "capabilities": {},
        "oomScoreAdj": int,
        "terminal": bool,
    },
    "root": {"path": str, "readonly": bool},
    "hostname": str,
    "hooks": {
        kind: [{"path": str, "args": [str], "env": [str], "timeout": int}]
        for kind in (
            *("prestart", "createRuntime", "createContainer"),
            *("startContainer", "poststart", "poststop"),
        )
    },
    "mounts": [{"destination": str, "source": str, "type": str, "options": [str]}],
    "annotations": {},
    "linux": {
        "namespaces": [{"type": str, "path": str}],
        "devices": [{"path": str, "type": str, "major": int, "minor": int}],
        "cgroupsPath": str,
        "sysctl": {},
        "uidMappings": [{"containerID": int, "hostID": int, "size": int}],
        "gidMappings": [{"containerID": int, "hostID": int, "size": int}],
        "resources": {
            "devices": [{"allow": bool}],
            "memory": {},
            "cpu": {},
            "pids": {},
            "blockIO": {},
            "unified": {},
            "hugepageLimits": [{}],
        },
        "seccomp": {},
        "maskedPaths": [str],
        "readonlyPaths": [str],
    },
}
"""Types of the members we read; null and absence are the same, as for Go."""

_NAMES = {str: "a string", int: "an integer", bool: "true or false"}


def load_spec(bundle: Path) -> Spec:
    """Read and check ``config.json`` of a bundle.

    Args:
        bundle: the bundle directory.

    Returns:
        The spec with null members removed.

    Raises:
        InvalidArgument: it is missing, unreadable, no JSON or of the wrong shape; the
            text names the file and the position or member.
    """
    path = bundle / "config.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    spec = parse_json(text, str(path))
    check_shape(spec, _SHAPE, str(path))
    if "root" not in spec or not spec["root"].get("path"):
        raise InvalidArgument(f"{path}: root.path is missing")
    if "process" in spec:
        _check_process(spec["process"], f"{path}: process")
    _check_root_is_mapped(spec.get("linux", {}), f"{path}: linux")
    return spec


def load_process(text: bytes, origin: str) -> Spec:
    """Parse the OCI process of an exec request.

    Args:
        text: JSON, the value of the request's ``spec`` Any.
        origin: what to call it in errors.

    Raises:
        InvalidArgument: as :func:`load_spec`.
    """
    process = parse_json(text, origin)
    check_shape(process, _SHAPE["process"], origin)
    _check_process(process, origin)
    return process


def load_resources(text: bytes, origin: str) -> Spec:
    """Parse the OCI ``linux.resources`` of an update request.

    Args:
        text: JSON, the value of the request's ``resources`` Any.
        origin: what to call it in errors.

    Raises:
        InvalidArgument: it is no JSON, or of the wrong shape.
    """
    resources = parse_json(text, origin)
    check_shape(resources, _SHAPE["linux"]["resources"], origin)
    return resources


def parse_json(text: bytes, origin: str) -> Spec:
    """Parse a JSON object, without its null members.

    Raises:
        InvalidArgument: naming ``origin``, line and column.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"{origin}: line {error.lineno} column {error.colno}: {error.msg}"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{origin}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{origin}: the top level must be an object")
    result: Spec = _without_nulls(value)
    return result


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Check ``value`` against a tree of types; unknown members are let through.

    Raises:
        InvalidArgument: naming the member by its path from ``where``.
    """
    separator = "." if ": " in where else ": "
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise InvalidArgument(f"{where} must be an object")
        for name, inner in shape.items():
            if name in value:
                check_shape(value[name], inner, f"{where}{separator}{name}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise InvalidArgument(f"{where} must be a list")
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{index}]")
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        raise InvalidArgument(f"{where} must be {_NAMES[shape]}")


def _check_process(process: Spec, where: str) -> None:
    if not process.get("args"):
        raise InvalidArgument(f"{where}: args is empty, there is nothing to run")
    if not process.get("cwd", "/").startswith("/"):
        raise InvalidArgument(f"{where}: cwd {process['cwd']!r} must be absolute")


def _check_root_is_mapped(linux: Spec, where: str) -> None:
    """A user namespace without a root has nobody to set its container up."""
    for name in ("uidMappings", "gidMappings"):
        maps = linux.get(name, ())
        if maps and not any(m.get("containerID", 0) == 0 and m.get("size", 0) for m in maps):
            raise InvalidArgument(f"{where}.{name}: container id 0 is not mapped")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value
