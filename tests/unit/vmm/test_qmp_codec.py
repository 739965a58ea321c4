from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.qemu.qmp_codec import (
    LINE_MAX,
    Failure,
    Greeting,
    Message,
    QmpDecoder,
    QmpEvent,
    QmpProtocolError,
    Reply,
    encode_command,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def wire(message: Message) -> bytes:
    match message:
        case Reply(command_id, value):
            body: object = {"return": value, "id": command_id}
        case Failure(command_id, kind, description):
            body = {"error": {"class": kind, "desc": description}, "id": command_id}
        case QmpEvent(name, data, _):
            body = {"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}}
        case Greeting():
            raise AssertionError("not made here")
    return json.dumps(body).encode() + b"\r\n"


messages = (
    st.builds(Reply, json_values, json_values)
    | st.builds(Failure, json_values, st.text(), st.text())
    | st.builds(QmpEvent, st.text(), json_objects, st.just(0.0))
)


@given(st.lists(messages, max_size=8), st.data())
def test_any_splitting_gives_the_same_messages(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(wire, sent))
    decoder = QmpDecoder()
    received: list[Message] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert received == sent


@given(st.binary())
def test_arbitrary_bytes_are_taken_or_refused(data: bytes) -> None:
    with contextlib.suppress(QmpProtocolError):
        QmpDecoder().feed(data)


@given(st.text(min_size=1), json_objects, json_values.filter(lambda value: value is not None))
def test_commands_are_one_line(name: str, arguments: dict[str, object], command_id: object) -> None:
    line = encode_command(name, arguments, command_id)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"execute": name, "arguments": arguments, "id": command_id}


def test_bare_and_out_of_band_commands() -> None:
    assert encode_command("stop") == b'{"execute":"stop"}\n'
    assert encode_command("x", out_of_band=True) == b'{"exec-oob":"x"}\n'


def test_greeting_of_qemu() -> None:
    line = (
        b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, '
        b'"package": "Debian 1:7.2+dfsg-7"}, "capabilities": ["oob"]}}\r\n'
    )
    assert QmpDecoder().feed(line) == [Greeting((7, 2, 22), "Debian 1:7.2+dfsg-7", ("oob",))]


def test_event_of_qemu() -> None:
    line = (
        b'{"timestamp": {"seconds": 5, "microseconds": 500000}, "event": "SHUTDOWN", '
        b'"data": {"guest": true, "reason": "guest-reset"}}\r\n'
    )
    expected = QmpEvent("SHUTDOWN", {"guest": True, "reason": "guest-reset"}, 5.5)
    assert QmpDecoder().feed(line) == [expected]


def test_a_line_without_end_is_given_up() -> None:
    decoder = QmpDecoder()
    decoder.feed(bytes(LINE_MAX))
    with pytest.raises(QmpProtocolError, match="longer"):
        decoder.feed(b"x")


def test_a_line_may_be_long() -> None:
    value = "x" * 1_000_000
    line = wire(Reply(1, value))
    decoder = QmpDecoder()
    pieces = [line[i : i + 4096] for i in range(0, len(line), 4096)]
    received = [message for piece in pieces for message in decoder.feed(piece)]
    assert received == [Reply(1, value)]


@pytest.mark.parametrize(
    "line", [b"no json\n", b"[1]\n", b"{}\n", b'{"error": "text"}\n', b'{"QMP": {}}\n']
)
def test_what_is_not_qmp(line: bytes) -> None:
    with pytest.raises(QmpProtocolError):
        QmpDecoder().feed(line)
