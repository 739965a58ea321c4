"""Encodings made by other implementations, held against protobuf and lite alike."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message as PbMessage
from google.protobuf.timestamp_pb2 import Timestamp

from protos import lite
from protos.containerd import bootstrap_pb2, events_pb2, runtime_options_pb2, task_v2_pb2
from protos.kata import agent_pb2, health_pb2, oci_pb2, types_pb2
from protos.tables import (
    containerd_bootstrap,
    containerd_events,
    containerd_runtime_options,
    containerd_task_v2,
    kata_agent,
    kata_health,
)
from tests.unit.protos.proto_strategies import as_dict, same

VECTORS: dict[str, tuple[Any, PbMessage, str]] = {
    "kata CreateSandboxRequest": (
        kata_agent.CreateSandboxRequest,
        agent_pb2.CreateSandboxRequest(
            hostname="h",
            dns=["nameserver 1.1.1.1"],
            storages=[
                agent_pb2.Storage(
                    driver="ephemeral",
                    source="shm",
                    fstype="tmpfs",
                    options=["size=65536"],
                    mount_point="/run/kata-containers/sandbox/shm",
                )
            ],
            sandbox_id="s1",
            kernel_modules=[agent_pb2.KernelModule(name="dummy", parameters=["a=1"])],
        ),
        "0a016812126e616d6573657276657220312e312e312e311a450a09657068656d6572616c1a0373686d220574"
        "6d7066732a0a73697a653d363535333632202f72756e2f6b6174612d636f6e7461696e6572732f73616e6462"
        "6f782f73686d2a0273313a0c0a0564756d6d791203613d31",
    ),
    "kata SignalProcessRequest": (
        kata_agent.SignalProcessRequest,
        agent_pb2.SignalProcessRequest(container_id="c", signal=9),
        "0a01631809",
    ),
    "kata UpdateInterfaceRequest": (
        kata_agent.UpdateInterfaceRequest,
        agent_pb2.UpdateInterfaceRequest(
            interface=types_pb2.Interface(
                device="eth0",
                name="eth0",
                IPAddresses=[
                    types_pb2.IPAddress(family=types_pb2.v6, address="fd00::2", mask="64")
                ],
                mtu=1500,
                hwAddr="02:00:00:00:00:01",
                devicePath="02/01",
            )
        ),
        "0a3a0a04657468301204657468301a0f08011207666430303a3a321a02363420dc0b2a1130323a30303a3030"
        "3a30303a30303a3031320530322f3031",
    ),
    "kata LinuxSeccomp": (
        kata_agent.LinuxSeccomp,
        oci_pb2.LinuxSeccomp(
            DefaultAction="SCMP_ACT_ERRNO",
            Syscalls=[
                oci_pb2.LinuxSyscall(
                    Names=["bpf"],
                    Action="SCMP_ACT_ERRNO",
                    errnoret=1,
                    Args=[oci_pb2.LinuxSeccompArg(Value=2, Op="SCMP_CMP_EQ")],
                )
            ],
        ),
        "0a0e53434d505f4143545f4552524e4f22280a03627066120e53434d505f4143545f4552524e4f1801220f10"
        "02220b53434d505f434d505f4551",
    ),
    "kata User": (
        kata_agent.User,
        oci_pb2.User(UID=1000, AdditionalGids=[1, 300]),
        "08e8071a0301ac02",
    ),
    "kata WaitProcessResponse": (
        kata_agent.WaitProcessResponse,
        agent_pb2.WaitProcessResponse(status=137),
        "088901",
    ),
    "kata CopyFileRequest": (
        kata_agent.CopyFileRequest,
        agent_pb2.CopyFileRequest(
            path="/run/kata-containers/shared/containers/f",
            file_size=2,
            file_mode=0o100644,
            dir_mode=0o755,
            uid=-1,
            data=b"hi",
        ),
        "0a282f72756e2f6b6174612d636f6e7461696e6572732f7368617265642f636f6e7461696e6572732f661002"
        "18a4830220ed0328ffffffffffffffffff0142026869",
    ),
    "kata HealthCheckResponse": (
        kata_health.HealthCheckResponse,
        health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING),
        "0801",
    ),
    "containerd BootstrapParams": (
        containerd_bootstrap.BootstrapParams,
        bootstrap_pb2.BootstrapParams(
            instance_id="c1",
            namespace="default",
            log_level=bootstrap_pb2.DEBUG,
            containerd_version="v2.3.4",
            containerd_ttrpc_address="/run/containerd/containerd.sock.ttrpc",
            containerd_grpc_address="/run/containerd/containerd.sock",
            containerd_binary="/usr/bin/containerd",
        ),
        "0a026331120764656661756c7418fcffffffffffffffff01220676322e332e342a252f72756e2f636f6e7461"
        "696e6572642f636f6e7461696e6572642e736f636b2e7474727063321f2f72756e2f636f6e7461696e657264"
        "2f636f6e7461696e6572642e736f636b3a132f7573722f62696e2f636f6e7461696e657264",
    ),
    "containerd BootstrapResult": (
        containerd_bootstrap.BootstrapResult,
        bootstrap_pb2.BootstrapResult(
            version=3, address="unix:///run/containerd/s/ab", protocol="ttrpc"
        ),
        "0803121b756e69783a2f2f2f72756e2f636f6e7461696e6572642f732f61621a057474727063",
    ),
    "containerd DeleteResponse": (
        containerd_task_v2.DeleteResponse,
        task_v2_pb2.DeleteResponse(
            pid=200, exit_status=137, exited_at=Timestamp(seconds=1700000000, nanos=5)
        ),
        "08c8011089011a080880e2cfaa061005",
    ),
    "containerd TaskStart": (
        containerd_events.TaskStart,
        events_pb2.TaskStart(container_id="c1", pid=200),
        "0a02633110c801",
    ),
    "containerd runtime Options": (
        containerd_runtime_options.Options,
        runtime_options_pb2.Options(type_url="katapy.v1.Options", config_path="/etc/katapy.toml"),
        "0a116b61746170792e76312e4f7074696f6e7312102f6574632f6b61746170792e746f6d6c",
    ),
}


@pytest.mark.parametrize(
    ("table", "message", "encoded"), [pytest.param(*v, id=k) for k, v in VECTORS.items()]
)
def test_vector(table: Any, message: PbMessage, encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    assert message.SerializeToString() == raw
    assert lite.encode(table, as_dict(message)) == raw
    assert same(lite.decode(table, raw), message)
