"""All pods of a host behind one address: those that answer, hang, lie or are gone."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from shim.cli.monitor import parse_address
from shim.errors import InvalidArgument
from shim.http.codec import JSON, Answer, Request
from shim.http.server import HttpServer
from shim.monitoring.exposition import parse
from shim.monitoring.node import NodeMonitor
from shim.monitoring.pods import RunningPod

TIMEOUT = 1.0
GOOD = """\
# TYPE kata_shim_fds gauge
kata_shim_fds 7
# TYPE kata_guest_load gauge
kata_guest_load 1
"""

Handler = Callable[[Request], Awaitable[Answer]]


def shim_of(name: str, text: str) -> Handler:
    async def answer(request: Request) -> Answer:
        match request.path:
            case "/metrics":
                return Answer(body=text.encode())
            case "/sandbox":
                about = {"cri_name": f"pod-{name}", "cri_namespace": "ns", "cri_uid": f"u-{name}"}
                return Answer(body=json.dumps(about).encode())
            case "/agent-url":
                return Answer(body=f"unix:///{name}".encode())
        return Answer(404)

    return answer


async def hangs(_request: Request) -> Answer:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


@asynccontextmanager
async def node(folder: Path, shims: dict[str, Handler | None]) -> AsyncIterator[NodeMonitor]:
    """A host with some shims; one without a handler listens nowhere."""
    pods = []
    async with trio.open_nursery() as nursery:
        for number, (name, handler) in enumerate(shims.items(), start=1):
            path = str(folder / name)
            pods.append(RunningPod("k8s.io", name, number, number, path))
            if handler is not None:
                sock = trio.socket.socket(trio.socket.AF_UNIX)
                await sock.bind(path)
                sock.listen()
                server = HttpServer(handler, connections=8, body_max=1)
                await nursery.start(
                    trio.serve_listeners, server.serve_connection, [trio.SocketListener(sock)]
                )
        yield NodeMonitor(lambda: list(pods), TIMEOUT)
        nursery.cancel_scope.cancel()


def figures(answer: Answer) -> dict[tuple[str, str], float]:
    assert answer.status == 200, answer.body
    return {
        (s.name, dict(s.labels).get("sandbox_id", "")): s.value
        for f in parse(answer.body.decode())
        for s in f.samples
    }


async def test_pods_that_answer_and_those_that_don_t(tmp_path: Path) -> None:
    shims = {
        "a": shim_of("a", GOOD),
        "b": shim_of("b", GOOD),
        "hangs": hangs,
        "lies": shim_of("lies", "no figures {"),
        "gone": None,
    }
    async with node(tmp_path, shims) as monitor:
        answer = await monitor.answer(Request("GET", "/metrics"))
        seen = figures(answer)
        assert seen["kata_shim_fds", "a"] == seen["kata_shim_fds", "b"] == 7
        assert {pod for _, pod in seen} == {"", "a", "b"}
        assert seen["kata_monitor_running_shim_count", ""] == 5
        assert seen["kata_monitor_scrape_failed_count", ""] == 3
        assert seen["kata_monitor_scrape_count", ""] == 1
        assert seen["kata_monitor_scrape_durations_histogram_milliseconds_count", ""] == 1
        assert b"# TYPE kata_shim_fds gauge\n" in answer.body
        assert answer.body.count(b"# TYPE kata_shim_fds") == 1, "a family stands in one place"
        assert b'sandbox_id="a",cri_uid="u-a",cri_name="pod-a",cri_namespace="ns"' in answer.body


async def test_one_pod_some_families_and_less_to_send(tmp_path: Path) -> None:
    shims: dict[str, Handler | None] = {"a": shim_of("a", GOOD), "b": shim_of("b", GOOD)}
    async with node(tmp_path, shims) as monitor:
        query = {"sandbox": "b", "filter_family": "kata_shim_fds,other"}
        answer = await monitor.answer(Request("GET", "/metrics", query))
        assert figures(answer) == {("kata_shim_fds", "b"): 7}
        assert (await monitor.answer(Request("GET", "/metrics", {"sandbox": "c"}))).status == 404
        headers = {"accept-encoding": "gzip, deflate"}
        answer = await monitor.answer(Request("GET", "/metrics", headers=headers))
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"kata_shim_fds" in gzip.decompress(answer.body)


async def test_the_list_of_pods_and_where_their_agents_are(tmp_path: Path) -> None:
    shims: dict[str, Handler | None] = {"a": shim_of("a", GOOD), "gone": None}
    async with node(tmp_path, shims) as monitor:
        assert (await monitor.answer(Request("GET", "/sandboxes"))).body == b"a\ngone\n"
        answer = await monitor.answer(Request("GET", "/sandboxes", headers={"accept": JSON}))
        first, second = json.loads(answer.body)
        assert (first["sandbox_id"], first["cri_name"], first["namespace"]) == (
            "a", "pod-a", "k8s.io",
        )  # fmt: skip
        assert (second["sandbox_id"], "cri_name" in second) == ("gone", False)
        url = await monitor.answer(Request("GET", "/agent-url", {"sandbox": "a"}))
        assert url.body == b"unix:///a\n"
        wrong = [({}, 400), ({"sandbox": "c"}, 404), ({"sandbox": "gone"}, 502)]
        for query, status in wrong:
            assert (await monitor.answer(Request("GET", "/agent-url", query))).status == status
        assert (await monitor.answer(Request("POST", "/metrics"))).status == 405
        assert (await monitor.answer(Request("GET", "/nothing"))).status == 404
        assert b"/metrics" in (await monitor.answer(Request("GET", "/"))).body


def test_addresses_to_listen_at() -> None:
    assert parse_address("127.0.0.1:8090") == ("127.0.0.1", 8090)
    assert parse_address("[::1]:1") == ("::1", 1)
    assert parse_address(":8090") == ("", 8090)
    for wrong in ("8090", "a:b", "a:70000", "a:-1"):
        with pytest.raises(InvalidArgument, match="--listen"):
            parse_address(wrong)
