"""lite against the real protobuf runtime, both ways."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf.message import DecodeError as PbDecodeError
from google.protobuf.message import Message as PbMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import lite
from protos.kata import agent_pb2, oci_pb2
from protos.tables import kata_agent, katapy_extension
from tests.unit.protos.proto_strategies import as_dict, build, pairs, same, values

PAIRS = pairs(
    "containerd_bootstrap",
    "containerd_introspection",
    "containerd_task_v2",
    "kata_agent",
    "kata_health",
    "katapy_extension",
    "ttrpc",
)
few = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
each_message = pytest.mark.parametrize(
    ("table", "cls"), [pytest.param(t, c, id=n) for n, t, c in PAIRS]
)


@each_message
@few
@given(data=st.data())
def test_both_ways_for_every_message(table: Any, cls: type[PbMessage], data: st.DataObject) -> None:
    fields = data.draw(values(cls.DESCRIPTOR))
    message = build(cls, fields)
    assert same(lite.decode(table, message.SerializeToString()), message)
    assert cls.FromString(lite.encode(table, fields)) == message


@each_message
def test_table_numbers_and_names_are_those_of_the_descriptor(
    table: Any, cls: type[PbMessage]
) -> None:
    fields = {f.number: f.name for f in cls.DESCRIPTOR.fields}
    assert {n: row[0] for n, row in table.items() if n} == fields
    assert list(table) == sorted(table)


def test_every_service_method_has_its_tables() -> None:
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    rows = kata_agent.SERVICES["grpc.AgentService"]
    assert len(service.methods) == 42
    assert {m.name: (m.input_type.full_name, m.output_type.full_name) for m in service.methods} == {
        name: (row[0][0], row[1][0]) for name, row in rows.items()
    }
    stdio = katapy_extension.SERVICES["katapy.agent.v1.Extension"]["Stdio"]
    assert stdio == (katapy_extension.StdioFrame, katapy_extension.StdioFrame, True, True)


FUZZED = [
    (kata_agent.CreateContainerRequest, agent_pb2.CreateContainerRequest),
    (kata_agent.LinuxSyscall, oci_pb2.LinuxSyscall),
    (kata_agent.CopyFileRequest, agent_pb2.CopyFileRequest),
    (kata_agent.StatsContainerResponse, agent_pb2.StatsContainerResponse),
    (kata_agent.MemAgentMemcgConfig, agent_pb2.MemAgentMemcgConfig),
]


def agree(table: Any, cls: type[PbMessage], encoded: bytes) -> None:
    """Both accept the bytes and see the same, or both refuse them."""
    try:
        message = cls.FromString(encoded)
    except PbDecodeError:
        with pytest.raises(lite.DecodeError):
            lite.decode(table, encoded)
    else:
        assert same(lite.decode(table, encoded), message)


@many
@given(st.sampled_from(FUZZED), st.binary(max_size=64))
def test_arbitrary_bytes(case: tuple[Any, type[PbMessage]], encoded: bytes) -> None:
    agree(*case, encoded)


@many
@given(st.sampled_from(FUZZED), st.data())
def test_damaged_messages(case: tuple[Any, type[PbMessage]], data: st.DataObject) -> None:
    table, cls = case
    good = build(cls, data.draw(values(cls.DESCRIPTOR))).SerializeToString()
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    agree(table, cls, bytes(damaged))


@many
@given(st.data())
def test_unknown_fields_are_skipped(data: st.DataObject) -> None:
    """What a Kata peer does with our fields from 100 on: WaitProcessRequest reads another's."""
    fields = data.draw(values(agent_pb2.CreateContainerRequest.DESCRIPTOR))
    message: Any = build(agent_pb2.CreateContainerRequest, fields)
    encoded = message.SerializeToString()
    seen = lite.decode(kata_agent.StartContainerRequest, encoded)
    assert set(seen) <= {"container_id"}
    assert seen["container_id"] == message.container_id


def test_unknown_groups_are_skipped_and_bounded() -> None:
    group = bytes.fromhex("a306 0805 a406".replace(" ", ""))  # field 100 as a group
    assert lite.decode(kata_agent.WaitProcessResponse, group + b"\x08\x05") == {"status": 5}
    for bad in (group[:-2], group[-2:], b"\xa3\x06" * 100_000, group[:-2] + b"\xac\x06"):
        with pytest.raises(lite.DecodeError):
            lite.decode(kata_agent.WaitProcessResponse, bad)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"\x08", id="value missing"),
        pytest.param(b"\x08" + b"\x80" * 10 + b"\x01", id="varint of eleven bytes"),
        pytest.param(b"\x80", id="tag cut"),
        pytest.param(b"\x00\x00", id="field number 0"),
        pytest.param(b"\xff\xff\xff\xff\xff\x0f\x00", id="field number over 29 bits"),
        pytest.param(b"\x12\x05ab", id="unknown field cut"),
        pytest.param(b"\x15\x00", id="unknown fixed32 cut"),
        pytest.param(b"\x0f", id="wire type 7"),
    ],
)
def test_malformed_input(encoded: bytes) -> None:
    with pytest.raises(lite.DecodeError):
        lite.decode(kata_agent.WaitProcessResponse, encoded)
    with pytest.raises(PbDecodeError):
        agent_pb2.WaitProcessResponse.FromString(encoded)


def test_singular_message_twice_is_merged() -> None:
    one = agent_pb2.ExecProcessRequest(process=oci_pb2.Process(Cwd="/a", Args=["x"]))
    two = agent_pb2.ExecProcessRequest(process=oci_pb2.Process(Terminal=True, Args=["y"]))
    encoded = one.SerializeToString() + two.SerializeToString()
    process = lite.decode(kata_agent.ExecProcessRequest, encoded)["process"]
    assert process == {"Cwd": "/a", "Args": ["x", "y"], "Terminal": True}


def test_repeated_numbers_in_either_form() -> None:
    for encoded in ("1a0301ac02", "180118ac02", "1801 1a02ac02".replace(" ", "")):
        assert lite.decode(kata_agent.User, bytes.fromhex(encoded))["AdditionalGids"] == [1, 300]


def test_defaults_of_absent_fields() -> None:
    message = lite.decode(kata_agent.CreateContainerRequest, b"")
    assert message == {}
    assert message["container_id"] == ""
    assert message["sandbox_pidns"] is False
    assert message["stdin_port"] == 0
    assert message["OCI"] is None
    assert message["oci_spec_json"] == b""
    devices = message["devices"]
    devices.append("not stored")
    assert message["devices"] == []
    assert lite.decode(kata_agent.Spec, b"")["Annotations"] == {}
    assert message == {}
    with pytest.raises(KeyError, match="has no field 'contaner_id'"):
        message["contaner_id"]


def test_presence_of_optional_fields() -> None:
    assert lite.encode(kata_agent.LinuxSyscall, {"errnoret": 0}) == b"\x18\x00"
    assert lite.encode(kata_agent.MemAgentMemcgConfig, {"swap": False}) == b"\x10\x00"
    assert lite.encode(kata_agent.WaitProcessResponse, {"status": 0}) == b""
    assert lite.encode(kata_agent.ExecProcessRequest, {"process": {}}) == b"\x22\x00"
    assert lite.encode(kata_agent.ExecProcessRequest, {"process": None}) == b""


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        (kata_agent.WaitProcessResponse, {"status": 1 << 31}),
        (kata_agent.SignalProcessRequest, {"signal": -1}),
        (kata_agent.SignalProcessRequest, {"sinal": 1}),
        (kata_agent.SignalProcessRequest, {"container_id": 5}),
        (kata_agent.SignalProcessRequest, {"container_id": "\ud800"}),
        (kata_agent.WriteStreamRequest, {"data": "text"}),
        (kata_agent.SignalProcessRequest, {"signal": "9"}),
        (kata_agent.ExecProcessRequest, {"process": {"Nope": 1}}),
    ],
)
def test_values_that_do_not_fit(table: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(lite.EncodeError):
        lite.encode(table, fields)


def test_a_decoded_message_encodes_again() -> None:
    rng = random.Random(7)
    message = agent_pb2.CreateContainerRequest(
        container_id="c",
        storages=[agent_pb2.Storage(driver="blk", options=["ro"])],
        OCI=oci_pb2.Spec(Annotations={"k": "v"}, Process=oci_pb2.Process(Args=["sh"])),
        oci_spec_json=rng.randbytes(70_000),
    )
    encoded = message.SerializeToString(deterministic=True)
    decoded = lite.decode(kata_agent.CreateContainerRequest, memoryview(encoded))
    assert decoded == as_dict(message)
    assert lite.encode(kata_agent.CreateContainerRequest, decoded) == encoded


def test_imports_nothing() -> None:
    script = (
        "import sys; before = set(sys.modules); allowed = ('protos', '__future__')\n"
        "import protos.lite, protos.tables.kata_agent, protos.tables.katapy_extension\n"
        "import protos.tables.kata_health, protos.tables.containerd_task_v2\n"
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in allowed))"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-E", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
