"""What the management socket answers, and how it says why not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protos.kata import csi_pb2
from shim.errors import NotFound, Unavailable
from shim.http.codec import Answer, Request
from shim.management.routes import Routes
from shim.oci.kubernetes import PodIdentity, pod_identity
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError


class Pod:
    """A pod that notes what is asked of it."""

    id = "p"
    identity = PodIdentity("u", "n", "ns")
    containers = {"b": None, "a": None}  # noqa: RUF012 - as the sandbox's property

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked: list[Any] = []
        self.failure = failure
        capabilities = SimpleNamespace(vmm="QEMU 7.2.0")
        self.vm = SimpleNamespace(
            pid=7, hypervisor=SimpleNamespace(agent_url="unix:///a", capabilities=capabilities)
        )
        self.agent = SimpleNamespace(iptables=self._iptables)

    @property
    def running_vm(self) -> Any:
        return self.vm

    async def _iptables(self, *, is_ipv6: bool, rules: bytes | None = None) -> bytes:
        self._note("iptables", is_ipv6, rules)
        return b"*filter"

    async def stats(self, path: str) -> csi_pb2.VolumeStatsResponse:
        self._note("stats", path)
        return csi_pb2.VolumeStatsResponse(usage=[csi_pb2.VolumeUsage(total=9, used=4)])

    async def resize(self, path: str, size: int) -> None:
        self._note("resize", path, size)

    async def text(self) -> str:
        return "up 1\n"

    def _note(self, *what: object) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure


async def ask(pod: Pod, method: str, target: str, body: bytes = b"", **query: str) -> Answer:
    routes = Routes(cast(Any, pod), cast(Any, pod), cast(Any, pod))
    return await routes.answer(Request(method, target, query, body=body))


async def test_all_that_is_asked_for() -> None:
    pod = Pod()
    assert (await ask(pod, "GET", "/metrics")).body == b"up 1\n"
    assert (await ask(pod, "GET", "/agent-url")).body == b"unix:///a"
    assert json.loads((await ask(pod, "GET", "/sandbox")).body) == {
        "sandbox_id": "p", "cri_uid": "u", "cri_name": "n", "cri_namespace": "ns",
        "containers": ["a", "b"], "pid": 7, "hypervisor": "QEMU 7.2.0",
    }  # fmt: skip
    assert (await ask(pod, "GET", "/iptables")).body == b"*filter"
    assert (await ask(pod, "PUT", "/ip6tables", b"rules")).body == b"*filter"
    for method in ("GET", "POST"):
        stats = json.loads((await ask(pod, method, "/direct-volume/stats", path="/v")).body)
        assert stats["usage"][0]["total"] == 9
    go, rust = b'{"VolumePath":"/v","Size":8}', b'{"volume_guest_path":"/v","size":8}'
    assert [(await ask(pod, "POST", "/direct-volume/resize", b)).status for b in (go, rust)] == [
        200, 200,
    ]  # fmt: skip
    assert pod.asked == [
        ("iptables", False, None), ("iptables", True, b"rules"), ("stats", "/v"), ("stats", "/v"),
        ("resize", "/v", 8), ("resize", "/v", 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"VolumePath":1,"Size":8}', b'{"VolumePath":"/v","Size":"8"}',
     b'{"VolumePath":"/v","Size":true}', b'{"VolumePath":"/v","Size":0}'],
)  # fmt: skip
async def test_what_is_no_resize(body: bytes) -> None:
    pod = Pod()
    assert (await ask(pod, "POST", "/direct-volume/resize", body)).status == 400
    assert pod.asked == []


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NotFound("no volume"), 404),
        (Unavailable("no VM"), 503),
        (TtrpcError(status.INVALID_ARGUMENT, "bad rules"), 400),
        (TtrpcError(status.UNIMPLEMENTED, "no iptables"), 501),
        (RuntimeError("a defect"), 500),
    ],
)
async def test_failures_have_their_status_and_their_reason(failure: Exception, code: int) -> None:
    answer = await ask(Pod(failure), "GET", "/iptables")
    assert answer.status == code
    assert (getattr(failure, "message", "") or str(failure)).encode() in answer.body


async def test_other_paths_and_methods() -> None:
    pod = Pod()
    assert (await ask(pod, "GET", "/x")).status == 404
    answer = await ask(pod, "DELETE", "/iptables")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, PUT")
    assert (await ask(pod, "HEAD", "/metrics")).status == 200
    assert (await ask(pod, "PUT", "/policy")).status == 501
    assert (await ask(pod, "GET", "/direct-volume/stats")).status == 400


def test_a_pod_s_names_by_either_server_s_annotations() -> None:
    containerd = {f"io.kubernetes.cri.sandbox-{k}": k for k in ("uid", "name", "namespace")}
    crio = {f"io.kubernetes.pod.{k}": k for k in ("uid", "name", "namespace")}
    for given in (containerd, crio):
        assert pod_identity({"annotations": given}) == PodIdentity("uid", "name", "namespace")
    assert pod_identity({}) == PodIdentity()
