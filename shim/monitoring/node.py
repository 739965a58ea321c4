"""All pods of a host behind one HTTP address, as kata-monitor has them.

Nothing is kept between requests but each pod's names. A pod that does not answer in time
costs a request no more than that time, and is counted.
Source: kata-containers pkg/kata-monitor; docs/design/kata-2-0-metrics.md.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from urllib.parse import quote

import trio

from shim.errors import KatapyError, Unavailable
from shim.http.client import ask
from shim.http.codec import JSON, Answer, Request, failure
from shim.monitoring.exposition import (
    CONTENT_TYPE,
    ExpositionError,
    Family,
    gauge,
    labelled,
    merge,
    parse,
    render,
)
from shim.monitoring.histogram import histogram
from shim.monitoring.pods import RunningPod
from shim.monitoring.processes import standard_families
from shim.ttrpc.durations import Durations

AT_ONCE = 32
_INDEX = """\
/metrics              figures of all pods, of one with ?sandbox=ID,
                      of some families only with ?filter_family=NAME,NAME
/sandboxes            the pods that run, as text or as JSON
/agent-url?sandbox=ID where the agent of a pod is reached
"""


@dataclass(frozen=True, slots=True)
class _Names:
    cri_uid: str = ""
    cri_name: str = ""
    cri_namespace: str = ""


class NodeMonitor:
    """Answers requests about the pods of this host.

    Args:
        find: gives the pods that run.
        timeout: seconds a pod may take to answer.
    """

    def __init__(self, find: Callable[[], Iterable[RunningPod]], timeout: float) -> None:
        self._find = find
        self._timeout = timeout
        self._names: dict[RunningPod, _Names] = {}
        self._at_once = trio.CapacityLimiter(AT_ONCE)
        self._scrapes = self._failures = 0
        self._durations = Durations()

    async def answer(self, request: Request) -> Answer:
        """Answer a request."""
        if request.method not in ("GET", "HEAD"):
            return failure(405, "only GET and HEAD", Allow="GET, HEAD")
        match request.path:
            case "/":
                return Answer(body=_INDEX.encode())
            case "/metrics":
                return await self._metrics(request)
            case "/sandboxes":
                return await self._sandboxes(request)
            case "/agent-url":
                return await self._agent_url(request)
        return failure(404, f"no such path: {request.path}")

    async def _pods(self) -> list[RunningPod]:
        found = await trio.to_thread.run_sync(lambda: list(self._find()))
        for gone in self._names.keys() - set(found):
            del self._names[gone]
        return found

    async def _pod(self, sandbox_id: str) -> RunningPod | None:
        return next((pod for pod in await self._pods() if pod.sandbox_id == sandbox_id), None)

    async def _metrics(self, request: Request) -> Answer:
        begin = perf_counter_ns()
        self._scrapes += 1
        pods = await self._pods()
        own = [gauge("kata_monitor_running_shim_count", "Pods that run.", len(pods))]
        if wanted := request.query.get("sandbox"):
            pods = [pod for pod in pods if pod.sandbox_id == wanted]
            if not pods:
                return failure(404, f"no pod {wanted!r} runs on this host")
        texts: dict[RunningPod, bytes] = {}
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(self._scrape, pod, texts)
        self._durations.add(perf_counter_ns() - begin)
        labels = {pod: self._labels(pod) for pod in texts}
        wanted_families = set(filter(None, request.query.get("filter_family", "").split(",")))

        def finish() -> tuple[bytes, int]:
            """Read, mark and put together: in a thread, as it takes a while for many pods."""
            families, malformed = _marked(texts, labels)
            everything = merge([own, self._own_families(malformed), *families])
            if wanted_families:
                everything = (f for f in everything if f.name in wanted_families)
            return render(everything).encode(), malformed

        body, malformed = await trio.to_thread.run_sync(finish)
        self._failures += malformed
        headers = {}
        if "gzip" in request.headers.get("accept-encoding", ""):
            body = await trio.to_thread.run_sync(gzip.compress, body, 1)
            headers["Content-Encoding"] = "gzip"
        return Answer(body=body, content_type=CONTENT_TYPE, headers=headers)

    async def _scrape(self, pod: RunningPod, texts: dict[RunningPod, bytes]) -> None:
        try:
            async with self._at_once:
                with trio.fail_after(self._timeout):
                    await self._learn(pod)
                    texts[pod] = await _get(pod, "/metrics")
        except (KatapyError, trio.TooSlowError):
            self._failures += 1

    async def _learn(self, pod: RunningPod) -> _Names:
        if pod not in self._names:
            about = json.loads(await _get(pod, "/sandbox"))
            self._names[pod] = _Names(*(str(about.get(key, "")) for key in _Names.__slots__))
        return self._names[pod]

    def _labels(self, pod: RunningPod) -> dict[str, str]:
        names = asdict(self._names.get(pod, _Names()))
        return {"sandbox_id": pod.sandbox_id, **{k: v for k, v in names.items() if v}}

    def _own_families(self, malformed: int) -> list[Family]:
        scrapes = Family("kata_monitor_scrape_count", "counter", "Requests for metrics.")
        scrapes.add(self._scrapes)
        failed = Family(
            "kata_monitor_scrape_failed_count",
            "counter",
            "Pods that did not answer as they should.",
        )
        failed.add(self._failures + malformed)
        took = histogram(
            "kata_monitor_scrape_durations_histogram_milliseconds",
            "How long asking the pods took.",
            {"": self._durations},
        )
        return [scrapes, failed, took, *standard_families("kata_monitor", os.getpid())]

    async def _sandboxes(self, request: Request) -> Answer:
        pods = await self._pods()
        if not request.accepts(JSON):
            return Answer(body="".join(f"{pod.sandbox_id}\n" for pod in pods).encode())
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(self._try_to_learn, pod)
        told = [
            {**self._labels(pod), "namespace": pod.namespace, "shim_pid": pod.pid} for pod in pods
        ]
        return Answer(body=json.dumps(told).encode(), content_type=JSON)

    async def _try_to_learn(self, pod: RunningPod) -> None:
        try:
            async with self._at_once:
                with trio.fail_after(self._timeout):
                    await self._learn(pod)
        except (KatapyError, trio.TooSlowError):
            pass  # it is listed without its names

    async def _agent_url(self, request: Request) -> Answer:
        wanted = request.query.get("sandbox", "")
        if not wanted:
            return failure(400, "the parameter sandbox is missing: a pod's id")
        pod = await self._pod(wanted)
        if pod is None:
            return failure(404, f"no pod {wanted!r} runs on this host")
        try:
            with trio.fail_after(self._timeout):
                return Answer(body=await _get(pod, "/agent-url") + b"\n")
        except (KatapyError, trio.TooSlowError) as error:
            return failure(502, str(error) or f"pod {wanted} does not answer")


def _marked(
    texts: dict[RunningPod, bytes], labels: dict[RunningPod, dict[str, str]]
) -> tuple[list[list[Family]], int]:
    """The families of each pod with its labels, and how many pods' texts are malformed."""
    families, malformed = [], 0
    for pod, text in texts.items():
        try:
            read = parse(text.decode(errors="replace"))
        except ExpositionError:
            malformed += 1
        else:
            families.append([labelled(family, labels[pod]) for family in read])
    return families, malformed


async def _get(pod: RunningPod, target: str) -> bytes:
    """Ask a pod's shim.

    Raises:
        Unavailable: it does not answer, or with a failure.
    """
    response = await ask(pod.management, "GET", quote(target))
    if response.status != 200:
        said = response.body.decode(errors="replace").strip()
        raise Unavailable(f"pod {pod.sandbox_id}: {target}: status {response.status}: {said}")
    return response.body
