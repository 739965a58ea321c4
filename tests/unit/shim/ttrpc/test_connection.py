"""Protocol rules, driven with bytes alone; V1 to V12 are frames of another implementation."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from protos.containerd import events_pb2, task_v2_pb2, ttrpc_events_pb2
from shim.ttrpc import connection, status
from shim.ttrpc.connection import ClientConnection, ServerConnection
from shim.ttrpc.framing import (
    DATA,
    FLAG_NO_DATA,
    FLAG_REMOTE_CLOSED,
    FLAG_REMOTE_OPEN,
    MESSAGE_MAX,
    REQUEST,
    RESPONSE,
    FrameDecoder,
    encode_frame,
)
from shim.ttrpc.messages import decode_response, encode_request, encode_response

NAMESPACE = ("containerd-namespace-ttrpc", "default")
TASK = "containerd.task.v2.Task"
V1 = (
    "0000004f0000000101000a17636f6e7461696e6572642e7461736b2e76322e5461736b1207436f6e6e656374"
    "1a040a0263312a250a1a636f6e7461696e6572642d6e616d6573706163652d7474727063120764656661756c74"
)
V1R = "000000070000000102001205086410c801"
V2 = (
    "000000300000000301000a17636f6e7461696e6572642e7461736b2e76322e5461736b120553746172741a08"
    "0a026331120265312080e497d012"
)
V2R = "00000000000000030200"
V3 = "0000001d0000000502000a1b08051217636f6e7461696e65722063393a206e6f7420666f756e64"
V4 = "000000100000000702000a0e080c120a6d6574686f6420466f6f"
V5 = (
    "000000310000000901000a17636f6e7461696e6572642e7461736b2e76322e5461736b120553746174651a04"
    "0a02633120ffffffffffffffffff01"
)
V6A = (
    "000000340000000b01020a2a636f6e7461696e6572642e73657276696365732e73747265616d696e672e7631"
    "2e53747265616d696e67120653747265616d"
)
V6B = "000000030000000b03000a0161"
V6C = "000000000000000b0305"
V6D = "000000000000000b0300"
V7 = "0000000c0000000d01010a03782e5912015a1a020801"
V8 = "004000010000000f0100"
V9 = "00400000000000110100"
V11 = "00000000000000130100"
V12 = (
    "000000af0000000101000a2a636f6e7461696e6572642e73657276696365732e6576656e74732e7474727063"
    "2e76312e4576656e74731207466f72776172641a4b0a490a080880e2cfaa061005120764656661756c741a0c"
    "2f7461736b732f737461727422260a1b636f6e7461696e6572642e6576656e74732e5461736b537461727412"
    "070a02633110c8012080e497d0122a250a1a636f6e7461696e6572642d6e616d6573706163652d7474727063"
    "120764656661756c74"
)
KATA_CHECK = "0000001a0000000101000a0b677270632e4865616c74681205436865636b2080e497d012"
KATA_SERVING = "0000000400000001020012020801"


def output(side: ServerConnection | ClientConnection) -> bytes:
    return b"".join(side.take_output())


def answers(server: ServerConnection) -> list[tuple[int, int, str]]:
    """The queued Response frames as (stream, code, text)."""
    out = []
    for stream_id, kind, _, payload in FrameDecoder().feed(output(server)):
        assert kind == RESPONSE
        assert payload is not None
        response = decode_response(payload)
        out.append((stream_id, response.code, response.message))
    return out


def received(server: ServerConnection, data: bytes | str) -> list[Any]:
    return list(server.feed(bytes.fromhex(data) if isinstance(data, str) else data))


def shape(events: list[Any]) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.stream_id) for event in events]


def opened(stream_id: int = 1) -> ServerConnection:
    """A server with one stream that the client holds open."""
    server = ServerConnection()
    frame = encode_frame(stream_id, REQUEST, FLAG_REMOTE_OPEN, encode_request("s", "m", b""))
    assert shape(received(server, frame)) == [("CallReceived", stream_id)]
    return server


def test_v1_unary_call_and_reply() -> None:
    server = ServerConnection()
    (call,) = received(server, V1)
    request = call.request
    assert (call.stream_id, call.flags, request.service, request.method) == (1, 0, TASK, "Connect")
    assert task_v2_pb2.ConnectRequest.FromString(request.payload).id == "c1"
    assert request.metadata == (NAMESPACE,)
    assert server.active == 1
    reply = task_v2_pb2.ConnectResponse(shim_pid=100, task_pid=200)
    server.respond(1, reply.SerializeToString())
    assert output(server).hex() == V1R
    assert server.active == 0

    client = ClientConnection()
    payload = task_v2_pb2.ConnectRequest(id="c1").SerializeToString()
    assert client.call(TASK, "Connect", payload, metadata=[NAMESPACE]) == 1
    assert output(client).hex() == V1
    (event,) = client.feed(bytes.fromhex(V1R))
    assert isinstance(event, connection.ResponseReceived)
    assert event.response.code == status.OK
    assert task_v2_pb2.ConnectResponse.FromString(event.response.payload) == reply


def test_v2_to_v5_deadlines_and_errors() -> None:
    server = ServerConnection()
    (call,) = received(server, V2)
    assert call.request.timeout_ns == 5_000_000_000
    server.respond(3, b"")
    assert output(server).hex() == V2R
    for stream_id, code, text, expected in (
        (5, status.NOT_FOUND, "container c9: not found", V3),
        (7, status.UNIMPLEMENTED, "method Foo", V4),
    ):
        received(server, encode_frame(stream_id, REQUEST, 0, encode_request("s", "m", b"")))
        server.fail(stream_id, code, text)
        assert output(server).hex() == expected
    (call,) = received(server, V5)
    assert call.request.timeout_ns == -1


def test_v6_bidirectional_stream() -> None:
    server = ServerConnection()
    (call,) = received(server, V6A)
    assert (call.stream_id, call.flags) == (11, FLAG_REMOTE_OPEN)
    assert call.request.method == "Stream"
    events = received(server, V6B + V6D + V6C)
    assert shape(events) == [("DataReceived", 11), ("DataReceived", 11), ("RemoteClosed", 11)]
    assert [events[0].payload, events[1].payload] == [b"\x0a\x01a", b""]
    server.send_data(11, b"\x0a", b"\x01a")
    server.send_data(11)
    server.end(11)
    assert output(server).hex() == V6B + V6D + V6C


def test_v7_server_stream_and_data_from_its_client() -> None:
    server = ServerConnection()
    (call,) = received(server, V7)
    assert (call.flags, call.request.payload) == (FLAG_REMOTE_CLOSED, b"\x08\x01")
    (event,) = received(server, encode_frame(13, DATA, 0, b"x"))
    assert (type(event), event.code) == (connection.StreamAborted, status.INVALID_ARGUMENT)
    assert answers(server)[0][:2] == (13, status.INVALID_ARGUMENT)
    server.send_data(13, b"late")
    server.end(13)
    assert output(server) == b""


def test_v8_v9_v11_sizes() -> None:
    server = ServerConnection()
    assert received(server, V8) == []
    assert answers(server)[0][:2] == (15, status.RESOURCE_EXHAUSTED)
    assert received(server, bytes(MESSAGE_MAX + 1)) == []
    envelope = len(encode_request("s", "m", bytes(1 << 21))) - (1 << 21)
    body = encode_request("s", "m", bytes(MESSAGE_MAX - envelope))
    assert len(body) == MESSAGE_MAX
    assert shape(received(server, bytes.fromhex(V9) + body)) == [("CallReceived", 17)]
    (call,) = received(server, V11)
    assert (call.stream_id, call.request.service) == (19, "")


def test_v12_and_kata_check_from_the_client() -> None:
    event = events_pb2.TaskStart(container_id="c1", pid=200)
    forward = ttrpc_events_pb2.ForwardRequest()
    forward.envelope.timestamp.CopyFrom(Timestamp(seconds=1700000000, nanos=5))
    forward.envelope.namespace = "default"
    forward.envelope.topic = "/tasks/start"
    forward.envelope.event.type_url = "containerd.events.TaskStart"
    forward.envelope.event.value = event.SerializeToString()
    client = ClientConnection()
    client.call(
        "containerd.services.events.ttrpc.v1.Events",
        "Forward",
        forward.SerializeToString(),
        5_000_000_000,
        [NAMESPACE],
    )
    assert output(client).hex() == V12
    client = ClientConnection()
    client.call("grpc.Health", "Check", b"", 5_000_000_000)
    assert output(client).hex() == KATA_CHECK
    (answer,) = client.feed(bytes.fromhex(KATA_SERVING))
    assert isinstance(answer, connection.ResponseReceived)
    assert answer.response.payload == b"\x08\x01"


@pytest.mark.parametrize("stream_id", [0, 2, 3, 5])
def test_even_reused_and_decreasing_ids_are_refused_once(stream_id: int) -> None:
    server = opened(5)
    frame = encode_frame(stream_id, REQUEST, 0, encode_request("s", "m", b""))
    assert received(server, frame) == []
    assert [answer[:2] for answer in answers(server)] == [(stream_id, status.INVALID_ARGUMENT)]
    assert server.is_active(5)


def test_ids_may_skip() -> None:
    server = opened(1)
    frame = encode_frame(0xFFFF_FFFF, REQUEST, 0, encode_request("s", "m", b""))
    assert shape(received(server, frame)) == [("CallReceived", 0xFFFF_FFFF)]


def test_undecodable_request_is_answered() -> None:
    server = ServerConnection()
    assert received(server, encode_frame(1, REQUEST, 0, b"\x0a\x05a")) == []
    assert answers(server)[0][:2] == (1, status.INVALID_ARGUMENT)
    assert server.active == 0


def test_unknown_frame_types_are_ignored() -> None:
    server = opened()
    assert received(server, encode_frame(1, 9, 0, b"x") + encode_frame(7, RESPONSE, 0, b"x")) == []
    assert output(server) == b""
    client = ClientConnection()
    client.call("s", "m", b"")
    assert client.feed(encode_frame(1, 9, 0, b"x") + encode_frame(1, REQUEST, 0, b"")) == []


def test_data_on_unknown_stream_is_refused_and_on_a_finished_one_ignored() -> None:
    server = opened(1)
    received(server, encode_frame(3, DATA, 0, b"x"))
    assert [answer[:2] for answer in answers(server)] == [(3, status.INVALID_ARGUMENT)]
    server.end(1)
    output(server)
    assert received(server, encode_frame(1, DATA, 0, b"x") + encode_frame(1, DATA, 5, b"")) == []
    assert output(server) == b""


def test_data_after_close_aborts_the_stream() -> None:
    server = opened()
    received(server, encode_frame(1, DATA, 5, b""))
    (event,) = received(server, encode_frame(1, DATA, 0, b"x"))
    assert (type(event), event.code) == (connection.StreamAborted, status.INVALID_ARGUMENT)
    assert len(answers(server)) == 1
    server.fail(1, status.UNKNOWN, "late")
    assert output(server) == b""


def test_data_with_close_delivers_both() -> None:
    server = opened()
    events = received(server, encode_frame(1, DATA, FLAG_REMOTE_CLOSED, b"x"))
    assert shape(events) == [("DataReceived", 1), ("RemoteClosed", 1)]


def test_oversized_data_aborts_only_its_stream() -> None:
    server = opened()
    (event,) = received(server, bytes.fromhex("00400001000000010300"))
    assert (type(event), event.code) == (connection.StreamAborted, status.RESOURCE_EXHAUSTED)
    assert answers(server)[0][:2] == (1, status.RESOURCE_EXHAUSTED)
    events = received(server, bytes(MESSAGE_MAX + 1) + bytes.fromhex(V6A))
    assert shape(events) == [("CallReceived", 11)]


def test_oversized_answers() -> None:
    server = opened()
    with pytest.raises(status.TtrpcError) as caught:
        server.send_data(1, bytes(MESSAGE_MAX), b"x")
    assert caught.value.code == status.RESOURCE_EXHAUSTED
    server.respond(1, bytes(MESSAGE_MAX))
    assert answers(server)[0][:2] == (1, status.RESOURCE_EXHAUSTED)
    client = ClientConnection()
    with pytest.raises(status.TtrpcError) as caught:
        client.call("s", "m", bytes(MESSAGE_MAX))
    assert caught.value.code == status.RESOURCE_EXHAUSTED
    assert client.call("s", "m", b"") == 1


def test_an_error_text_never_makes_an_oversized_frame() -> None:
    server = opened()
    server.fail(1, status.UNKNOWN, "é" * MESSAGE_MAX)
    (frame,) = FrameDecoder().feed(output(server))
    assert frame[3] is not None


def test_client_stream_rules() -> None:
    client = ClientConnection()
    assert client.open_stream("s", "m", None) == 1
    assert client.open_stream("s", "m", b"") == 3
    frames = FrameDecoder().feed(output(client))
    assert [frame[2] for frame in frames] == [FLAG_REMOTE_OPEN, FLAG_REMOTE_CLOSED]
    with pytest.raises(status.TtrpcError) as caught:
        client.send_data(3, b"x")
    assert caught.value.code == status.FAILED_PRECONDITION
    client.close_send(1)
    client.close_send(1)
    assert output(client) == encode_frame(1, DATA, FLAG_REMOTE_CLOSED | FLAG_NO_DATA, b"")
    events = list(client.feed(encode_frame(1, DATA, 0, b"") + encode_frame(1, DATA, 5, b"")))
    assert shape(events) == [("DataReceived", 1), ("RemoteClosed", 1)]
    with pytest.raises(status.TtrpcError):
        client.send_data(1, b"x")


def test_late_replies_are_dropped() -> None:
    client = ClientConnection()
    client.call("s", "m", b"")
    client.open_stream("s", "m", None)
    output(client)
    client.forget(1)
    assert output(client) == b""
    client.forget(3)
    assert output(client) == encode_frame(3, DATA, FLAG_REMOTE_CLOSED | FLAG_NO_DATA, b"")
    late = encode_frame(1, RESPONSE, 0, b"") + encode_frame(3, DATA, 0, b"x")
    assert client.feed(late + encode_frame(99, RESPONSE, 0, b"")) == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode_frame(1, DATA, 0, b"x"), status.INTERNAL),
        (encode_frame(1, RESPONSE, 0, b"\x0a\x05"), status.INTERNAL),
        (bytes.fromhex("00400001000000010200"), status.RESOURCE_EXHAUSTED),
        (encode_frame(1, RESPONSE, 0, encode_response(5, "x", b"")), status.NOT_FOUND),
    ],
)
def test_bad_answers_end_the_call(frame: bytes, code: int) -> None:
    client = ClientConnection()
    client.call("s", "m", b"")
    (event,) = client.feed(frame)
    assert isinstance(event, connection.ResponseReceived)
    assert event.response.code == code


frames = st.builds(
    encode_frame,
    st.integers(0, 6),
    st.sampled_from([REQUEST, RESPONSE, DATA, 0, 9]),
    st.integers(0, 7),
    st.sampled_from([b"", encode_request("s", "m", b"p"), encode_response(0, "", b"p"), b"\xff"]),
)


@given(st.lists(frames, max_size=12))
def test_any_sequence_of_frames_is_survived(sequence: list[bytes]) -> None:
    """Each stream id is answered once at most; the client's table never breaks."""
    server = ServerConnection()
    calls = [
        e.stream_id
        for e in received(server, b"".join(sequence))
        if shape([e])[0][0] == "CallReceived"
    ]
    assert calls == sorted(set(calls))
    for stream_id in calls:
        server.respond(stream_id, b"")
    assert server.active == 0
    client = ClientConnection()
    client.call("s", "m", b"")
    client.open_stream("s", "m", None)
    client.feed(b"".join(sequence))
    client.forget(1)
    client.forget(3)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_survived(data: bytes) -> None:
    ServerConnection().feed(data)
    client = ClientConnection()
    client.call("s", "m", b"")
    client.feed(data)
