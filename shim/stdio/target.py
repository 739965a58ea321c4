"""What the stdio strings of Create and Exec requests name.

Source: containerd runtime v2 I/O URIs (README "Logging", runc shim process/io.go).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from shim.errors import InvalidArgument, Unimplemented


@dataclass(frozen=True, slots=True)
class PathTarget:
    """A path without scheme: normally a FIFO the client has made."""

    path: str


@dataclass(frozen=True, slots=True)
class FileTarget:
    """``file://``: append both outputs to a file."""

    path: str


@dataclass(frozen=True, slots=True)
class LoggerTarget:
    """``binary://``: hand both outputs to a logging program.

    ``must_signal_ready`` is the difference of ``binary-v2``: an end of file on the
    ready pipe without a byte before it is a failure.
    """

    path: str
    arguments: tuple[str, ...]
    must_signal_ready: bool


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """``ttrpc+unix://``: a stream of this id, which the client opens to the shim."""

    stream_id: str


Target = PathTarget | FileTarget | LoggerTarget | StreamTarget


def parse_target(value: str) -> Target | None:
    """Parse a stdout or stderr string; ``None`` means discard.

    Raises:
        InvalidArgument: unknown scheme, no absolute path or no id.
        Unimplemented: streams by anything but ttrpc on a unix socket.
    """
    if not value:
        return None
    scheme, separator, _ = value.partition("://")
    if not separator:
        return PathTarget(_absolute(value, value))
    url = urlsplit(value)
    if scheme == "file":
        return FileTarget(_absolute(unquote(url.path), value))
    if scheme in ("binary", "binary-v2"):
        return LoggerTarget(
            _absolute(unquote(url.path), value), _arguments(url.query), scheme == "binary-v2"
        )
    return _stream(scheme, url.path, url.query, value)


def parse_stdin(value: str) -> PathTarget | StreamTarget | None:
    """Parse a stdin string: a FIFO's path, a stream, or empty.

    Raises:
        InvalidArgument: a URL of an unknown scheme, no absolute path or no id.
        Unimplemented: streams by anything but ttrpc on a unix socket.
    """
    if not value:
        return None
    scheme, separator, _ = value.partition("://")
    if separator:
        url = urlsplit(value)
        return _stream(scheme, url.path, url.query, value)
    return PathTarget(_absolute(value, value))


def _arguments(query: str) -> tuple[str, ...]:
    """Keys and first values, flat, as containerd passes them to the program."""
    first: dict[str, str] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        first.setdefault(key, text)
    return tuple(word for pair in first.items() for word in pair)


def _absolute(path: str, value: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"stdio {value!r}: an absolute path is needed")
    return path


def _stream(scheme: str, path: str, query: str, value: str) -> StreamTarget:
    protocol, separator, _ = scheme.partition("+")
    if not separator or protocol not in ("ttrpc", "grpc"):
        raise InvalidArgument(
            f"stdio {value!r}: the scheme must be file, binary, binary-v2 or ttrpc+unix"
        )
    if scheme != "ttrpc+unix":
        raise Unimplemented(f"stdio {value!r}: streams are served by ttrpc+unix only")
    _absolute(path, value)
    stream_id = dict(parse_qsl(query)).get("streaming_id", "")
    if not stream_id:
        raise InvalidArgument(f"stdio {value!r}: no streaming_id")
    return StreamTarget(stream_id)
