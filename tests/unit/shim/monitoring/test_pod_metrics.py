"""What a pod tells of itself when its guest is sound, silent or hostile."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from protos.kata import agent_pb2
from shim.log import INFO, Log
from shim.monitoring import pod_metrics as module
from shim.monitoring.exposition import parse
from shim.monitoring.histogram import histogram, together
from shim.monitoring.pod_metrics import GUEST_TIMEOUT_S, PodMetrics, action
from shim.pod.sandbox import Sandbox
from shim.ttrpc.durations import BOUNDS_MS, Durations
from shim.ttrpc.service import Method, Service


class Vm:
    """A VM whose process is this one."""

    def __init__(self, text: str = "", delay: float = 0) -> None:
        self._text, self._delay = text, delay
        self.pid = os.getpid()
        self.helpers = ()
        self.hypervisor = SimpleNamespace(exited=trio.Event(), own_counters=self._counters)
        called = Durations()
        called.add(3_000_000)
        self.agent = SimpleNamespace(
            metrics=self._metrics, call_durations={"grpc.CheckRequest": called}
        )

    async def _metrics(self) -> str:
        await trio.sleep(self._delay)
        return self._text

    async def _counters(self) -> dict[str, dict[str, int]]:
        return {"vcpu": {"exit_io_in": 4}, "bad name": {"a": 1}}


@pytest.fixture(autouse=True)
def no_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stats(_containers: object) -> agent_pb2.StatsContainerResponse:
        return agent_pb2.StatsContainerResponse()

    monkeypatch.setattr(module, "pod_stats", stats)


async def figures(vm: Vm | None, times: int = 1) -> dict[str, Any]:
    method = Method("ResizePty", lambda _request, _context: None, bytes, bytes)
    method.durations.add(1_500_000)
    sandbox = SimpleNamespace(vm=vm, containers={})
    told = PodMetrics(
        cast(Sandbox, sandbox), [Service("containerd.task.v2.Task", [method])], Log(-1, INFO, {})
    )
    text = ""
    for _ in range(times):
        text = await told.text()
    return {"".join(str(part) for part in s.key): s.value for f in parse(text) for s in f.samples}


async def test_a_pod_s_figures() -> None:
    seen = await figures(Vm("# TYPE kata_guest_load gauge\nkata_guest_load 0.5\n"), times=2)
    assert seen["kata_guest_load"] == 0.5
    calls = "kata_shim_rpc_durations_histogram_milliseconds"
    assert seen[f"{calls}_count('action', 'resize_pty')"] == 1
    assert seen[f"{calls}_bucket('action', 'resize_pty')('le', '1')"] == 0
    assert seen[f"{calls}_bucket('action', 'resize_pty')('le', '2')"] == 1
    assert seen[f"{calls}_sum('action', 'resize_pty')"] == 1.5
    agents = "kata_shim_agent_rpc_durations_histogram_milliseconds"
    assert seen[f"{agents}_count('action', 'grpc.CheckRequest')"] == 1
    assert seen["kata_firecracker_vcpu('item', 'exit_io_in')"] == 4
    assert not [name for name in seen if "bad name" in name]
    assert seen["kata_hypervisor_threads"] == seen["kata_shim_threads"]
    assert seen["kata_shim_pod_overhead_memory_in_bytes"] > 1 << 20
    assert "kata_shim_pod_overhead_cpu" in seen


async def test_a_guest_can_t_pass_for_the_host() -> None:
    seen = await figures(Vm("kata_shim_fds 99999\nup 1\nprocess_cpu_seconds_total 5\n"))
    assert seen["kata_shim_fds"] != 99999
    assert "up" not in seen
    assert seen["kata_agent_process_cpu_seconds_total"] == 5


@pytest.mark.parametrize("text", ["nonsense {\n", "a" * (2 << 20)])
async def test_a_guest_that_talks_nonsense_is_left_out(text: str) -> None:
    seen = await figures(Vm(text))
    assert "kata_shim_threads" in seen
    assert not [name for name in seen if name.startswith("kata_guest")]


async def test_a_guest_that_is_silent_costs_its_time(autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    seen = await figures(Vm(delay=1000))
    assert "kata_shim_threads" in seen
    assert trio.current_time() - begin == pytest.approx(GUEST_TIMEOUT_S)


async def test_without_a_vm_there_is_the_shim() -> None:
    seen = await figures(None)
    assert "kata_shim_threads" in seen
    assert not [name for name in seen if name.startswith("kata_hypervisor")]


def test_the_names_of_calls_are_kata_s() -> None:
    names = ("Create", "CloseIO", "ResizePty", "Pids")
    assert [action(name) for name in names] == ["create", "close_io", "resize_pty", "pids"]


def test_calls_of_both_services_add_up() -> None:
    one, two = Durations(), Durations()
    one.add(500)
    two.add(10**12)
    family = histogram("h", "", {"x": together([one, two, Durations()]), "never": Durations()}, "a")
    counts = [s.value for s in family.samples if s.name == "h_bucket"]
    assert counts == [1] * len(BOUNDS_MS) + [2]
    assert {dict(s.labels)["a"] for s in family.samples} == {"x"}
