from __future__ import annotations

import pytest

from shim.errors import InvalidArgument, Unimplemented
from shim.stdio.target import (
    FileTarget,
    LoggerTarget,
    PathTarget,
    StreamTarget,
    parse_stdin,
    parse_target,
)


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("", None),
        ("/run/fifo/1-stdout", PathTarget("/run/fifo/1-stdout")),
        ("/odd name%20 #?", PathTarget("/odd name%20 #?")),
        ("file:///var/log/a%20b.log", FileTarget("/var/log/a b.log")),
        ("binary:///bin/log", LoggerTarget("/bin/log", (), False)),
        ("binary-v2:///bin/log?a=1&b=&a=2", LoggerTarget("/bin/log", ("a", "1", "b", ""), True)),
        ("binary:///bin/log?--dir=/x%20y", LoggerTarget("/bin/log", ("--dir", "/x y"), False)),
    ],
)
def test_targets(value: str, target: object) -> None:
    assert parse_target(value) == target


@pytest.mark.parametrize(
    "value",
    [
        *("relative", "file://", "http:///x", "binary://", "/a\0b"),
        *("ttrpc+unix:///s", "ttrpc+unix:///s?streaming_id=", "ttrpc+unix://s?streaming_id=c"),
    ],
)
def test_malformed_targets_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="stdio"):
        parse_target(value)


def test_a_stream_is_known_by_its_id() -> None:
    value = "ttrpc+unix:///run/s/1?streaming_id=c%2D1-stdout"
    assert parse_target(value) == StreamTarget("c-1-stdout")
    assert parse_stdin(value) == StreamTarget("c-1-stdout")


@pytest.mark.parametrize("value", ["grpc+unix:///s?streaming_id=c", "ttrpc+vsock://2:3"])
def test_streams_come_by_ttrpc_on_a_unix_socket(value: str) -> None:
    with pytest.raises(Unimplemented):
        parse_target(value)
    with pytest.raises(Unimplemented):
        parse_stdin(value)


def test_stdin_is_a_path() -> None:
    assert parse_stdin("/f") == PathTarget("/f")
    assert parse_stdin("") is None
    with pytest.raises(InvalidArgument):
        parse_stdin("file:///f")
