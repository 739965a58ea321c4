"""What containerd tells the shim binary and what it expects back; no I/O.

Standard library only and few imports: this runs before the shim's address is
printed, where each millisecond is seen by every container.

Source: containerd core/runtime/v2 README and pkg/shim; api/runtime/bootstrap.
"""

from __future__ import annotations

from shim.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

ACTIONS = ("start", "delete")
ID_MAX = 255  # an id becomes a directory name

_STRING_FLAGS = {
    "namespace": "namespace",
    "id": "id",
    "address": "address",
    "publish-binary": "publish_binary",
    "bundle": "bundle",
    "socket": "socket",
    "debug-socket": "debug_socket",
}
_BOOL_FLAGS = {"debug": "debug", "info": "info", "v": "version", "version": "version"}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")

_GROUP = "io.containerd.runc.v2.group"
_SANDBOX_IDS = (
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.sandbox.id",
)
_CONTAINER_TYPES = (
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.docker.type",
)

# The one field of runc's options that concerns `start`; the codec skips the others.
_RUNC_OPTIONS = {0: "containerd.runc.v1.Options", 3: ("shim_cgroup", 9, 0, None)}


class Arguments:
    """The command line of one call of the shim binary.

    ``action`` is "start", "delete" or "" (for ``-info`` and ``-v``); paths are
    as given, ``address`` is containerd's gRPC socket.
    """

    __slots__ = (
        "action",
        "address",
        "bundle",
        "debug",
        "debug_socket",
        "id",
        "info",
        "namespace",
        "publish_binary",
        "socket",
        "version",
    )

    def __init__(self) -> None:
        self.action = ""
        self.namespace = ""
        self.id = ""
        self.address = ""
        self.publish_binary = ""
        self.bundle = ""
        self.socket = ""
        self.debug_socket = ""
        self.debug = False
        self.info = False
        self.version = False


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse the shim's arguments in the syntax of Go's flag package.

    Args:
        argv: the arguments after the program name.

    Raises:
        InvalidArgument: unknown flag, missing or malformed value, unknown action,
            or an id or namespace that cannot name a directory.
    """
    arguments = Arguments()
    index = 0
    while index < len(argv):
        word = argv[index]
        if len(word) < 2 or word[0] != "-":
            break
        index += 1
        if word == "--":
            break
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if name in _BOOL_FLAGS:
            setattr(arguments, _BOOL_FLAGS[name], _boolean(name, value) if equals else True)
        elif name in _STRING_FLAGS:
            if not equals:
                if index == len(argv):
                    raise InvalidArgument(f"flag -{name} needs a value")
                value = argv[index]
                index += 1
            setattr(arguments, _STRING_FLAGS[name], value)
        else:
            raise InvalidArgument(f"unknown flag {word}; known are -{', -'.join(_all_flags())}")
    rest = argv[index:]
    if rest:
        arguments.action = rest[0]
    if arguments.info or arguments.version:
        return arguments
    if arguments.action not in ACTIONS:
        raise InvalidArgument(f"expected one of {', '.join(ACTIONS)}, got {arguments.action!r}")
    check_name("-id", arguments.id)
    check_name("-namespace", arguments.namespace)
    return arguments


def _all_flags() -> list[str]:
    return sorted([*_STRING_FLAGS, *_BOOL_FLAGS])


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidArgument(f"flag -{name} is true or false, not {value!r}")


def check_name(what: str, name: str) -> None:
    """Refuse a name that cannot be one component of a path.

    Raises:
        InvalidArgument: empty, too long, ``.``, ``..``, or with a slash or control characters.
    """
    if not name:
        raise InvalidArgument(f"{what} is missing")
    if len(name.encode("utf-8", "surrogateescape")) > ID_MAX:
        raise InvalidArgument(f"{what} is longer than {ID_MAX} bytes: {name[:40]!r}…")
    if name in (".", "..") or "/" in name or any(c < " " or c == "\x7f" for c in name):
        raise InvalidArgument(f"{what} {name!r} cannot name a directory")


class StartInput:
    """What standard input of ``start`` held.

    ``params`` says whether it was BootstrapParams (containerd 2.3 and newer);
    ``options`` is the runtime options Any as (type URL without prefix, value).
    Empty texts mean "not told".
    """

    __slots__ = (
        "debug",
        "grpc_address",
        "options",
        "params",
        "publish_binary",
        "socket_dir",
        "ttrpc_address",
    )

    def __init__(self) -> None:
        self.params = False
        self.options: tuple[str, bytes] | None = None
        self.debug = False
        self.ttrpc_address = ""
        self.grpc_address = ""
        self.publish_binary = ""
        self.socket_dir = ""


def parse_stdin(data: bytes, container_id: str, namespace: str) -> StartInput:
    """Read the bytes containerd wrote to ``start``.

    Old daemons send a ``google.protobuf.Any`` of the runtime options, new ones
    BootstrapParams; each parses as the other, so the id and namespace decide.

    Raises:
        InvalidArgument: the bytes are neither.
    """
    result = StartInput()
    if not data:
        return result
    from protos import lite
    from protos.tables import containerd_bootstrap as tables

    try:
        message = lite.decode(tables.Any, data)
        if (message["type_url"], message["value"]) == (container_id, namespace.encode()):
            result.params = True
            params = lite.decode(tables.BootstrapParams, data)
            result.debug = params["log_level"] < 0
            result.ttrpc_address = params["containerd_ttrpc_address"]
            result.grpc_address = params["containerd_grpc_address"]
            result.publish_binary = params["containerd_binary"]
            result.socket_dir = params["socket_dir"]
            extensions = [_options(e["value"]) for e in params["extensions"] if e["value"]]
            result.options = next(iter(extensions), None)
        else:
            result.options = _options(message)
    except ValueError as error:
        raise InvalidArgument(f"standard input is no runtime options message: {error}") from error
    return result


def _options(message: Any) -> tuple[str, bytes] | None:
    type_url = message["type_url"].rsplit("/", 1)[-1]
    if "." not in type_url:
        raise ValueError(f"type URL {type_url!r} has no dot")
    return type_url, message["value"]


def shim_cgroup(options: tuple[str, bytes] | None) -> str:
    """The ``shim_cgroup`` of runc's options, or "" when there is none.

    Raises:
        InvalidArgument: the options do not parse.
    """
    if options is None or options[0] != "containerd.runc.v1.Options":
        return ""
    from protos import lite

    try:
        cgroup: str = lite.decode(_RUNC_OPTIONS, options[1])["shim_cgroup"]
    except ValueError as error:
        raise InvalidArgument(f"runc options do not parse: {error}") from error
    return cgroup


def parse_json(text: str) -> Any:
    """Parse JSON with the C scanner alone: the json package takes 7 ms to import.

    Raises:
        ValueError: malformed text.
    """
    try:
        from _json import make_scanner

        stripped = text.strip(" \t\r\n")
        value, end = make_scanner(_ScannerSettings)(stripped, 0)  # type: ignore[arg-type]
        if end == len(stripped):
            return value
    except (ImportError, StopIteration, SystemError, ValueError):
        pass  # the scanner can't say what is wrong without the package
    import json

    return json.loads(text)


class _ScannerSettings:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


class Group:
    """Which shim serves a container: ``id`` names it, ``member`` forbids starting it."""

    __slots__ = ("id", "member")

    def __init__(self, group_id: str, member: bool) -> None:
        self.id = group_id
        self.member = member


def find_group(config: bytes | None, container_id: str) -> Group:
    """Find the shim a container belongs to from the annotations of its OCI spec.

    Args:
        config: config.json of the bundle, None when it has none (a sandbox of
            the shim sandboxer).
        container_id: the container's own id, its group when nothing else is said.

    Raises:
        InvalidArgument: config.json is malformed, or the annotation cannot be an id.
    """
    keys = (_GROUP, *_SANDBOX_IDS, *_CONTAINER_TYPES)
    if config is None:
        return Group(container_id, False)
    try:
        spec = parse_json(config.decode())
        if not isinstance(spec, dict):
            raise ValueError("not an object")
        for name in ("process", "root", "linux", "annotations"):
            if not isinstance(spec.get(name) or {}, dict):
                raise ValueError(f"{name} is not an object")
        annotations = spec.get("annotations") or {}
        values = {key: annotations[key] for key in keys if annotations.get(key)}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"config.json of {container_id} is malformed: {error}") from error
    kind = next((values[key] for key in _CONTAINER_TYPES if key in values), "")
    for key in (_GROUP, *_SANDBOX_IDS):
        if key in values:
            if not isinstance(values[key], str):
                raise InvalidArgument(f"annotation {key} of {container_id} is not a text")
            check_name(f"annotation {key}", values[key])
            return Group(values[key], kind == "container")
    return Group(container_id, False)


def render_answer(address: str, params: bool) -> bytes:
    """What ``start`` prints: a bare address for old daemons, JSON for BootstrapParams.

    The bare form means version 2 and is the only one containerd 1.6 and 1.7
    both take; version 3 spares the daemon a ``start`` for each pod member.
    """
    if not params:
        return address.encode()
    quoted = address.replace("\\", "\\\\").replace('"', '\\"')
    return f'{{"version":3,"address":"{quoted}","protocol":"ttrpc"}}'.encode()


def parse_record(text: str) -> str:
    """The socket path in a bundle's ``address`` or ``bootstrap.json``, "" if unusable."""
    text = text.strip()
    if text.startswith("{"):
        try:
            text = parse_json(text)["address"]
        except (ValueError, KeyError, TypeError):
            return ""
    return text[len("unix://") :] if text.startswith("unix://") else ""
