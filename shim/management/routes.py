"""What the management socket answers, by method and path: translate, call, translate back.

Paths, parameters and bodies are those of both of Kata's runtimes.
Source: kata-containers pkg/containerd-shim-v2/shim_management.go and
runtime-rs' runtimes/src/shim_mgmt/handlers.rs.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shim import translate
from shim.errors import InvalidArgument
from shim.http.codec import JSON, Answer, Request, failure
from shim.http.server import HttpServer
from shim.management.volume_stats import volume_stats
from shim.monitoring.exposition import CONTENT_TYPE
from shim.monitoring.pod_metrics import PodMetrics
from shim.pod.direct_volumes import DirectVolumes
from shim.pod.sandbox import Sandbox
from shim.ttrpc import status

CONNECTIONS = 8
BODY_MAX = 1 << 20

_STATUS: Mapping[int, int] = {
    status.INVALID_ARGUMENT: 400,
    status.NOT_FOUND: 404,
    status.ALREADY_EXISTS: 409,
    status.FAILED_PRECONDITION: 409,
    status.RESOURCE_EXHAUSTED: 507,
    status.UNIMPLEMENTED: 501,
    status.UNAVAILABLE: 503,
    status.DEADLINE_EXCEEDED: 504,
}

_Handler = Callable[[Request], Awaitable[Answer]]


class Routes:
    """Answers requests about one pod.

    Args:
        sandbox: the pod.
        volumes: the direct-assigned volumes it uses.
        metrics: gathers its figures.
    """

    def __init__(self, sandbox: Sandbox, volumes: DirectVolumes, metrics: PodMetrics) -> None:
        self._sandbox = sandbox
        self._volumes = volumes
        self._metrics = metrics
        tables: dict[str, _Handler] = {"GET": self._rules, "PUT": self._set_rules}
        self._routes: Mapping[str, Mapping[str, _Handler]] = {
            "/metrics": {"GET": self._all_metrics},
            "/agent-url": {"GET": self._agent_url},
            "/sandbox": {"GET": self._about},
            # By GET in Kata's Go runtime, by POST in its Rust one.
            "/direct-volume/stats": {"GET": self._volume_stats, "POST": self._volume_stats},
            "/direct-volume/resize": {"POST": self._volume_resize},
            "/iptables": tables,
            "/ip6tables": tables,
            "/policy": {"PUT": self._policy},
        }

    def server(self) -> HttpServer:
        """Make the server of these."""
        return HttpServer(self.answer, connections=CONNECTIONS, body_max=BODY_MAX)

    async def answer(self, request: Request) -> Answer:
        """Answer a request."""
        methods = self._routes.get(request.path)
        if methods is None:
            return failure(404, f"no such path: {request.path}")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            return failure(
                405, f"{request.path} takes {', '.join(methods)}", Allow=", ".join(methods)
            )
        try:
            return await handler(request)
        except Exception as error:
            told = translate.error(error)
            return failure(_STATUS.get(told.code, 500), told.message)

    async def _all_metrics(self, _request: Request) -> Answer:
        text = await self._metrics.text()
        return Answer(body=text.encode(), content_type=CONTENT_TYPE)

    async def _agent_url(self, _request: Request) -> Answer:
        vm = self._sandbox.running_vm
        return Answer(body=vm.hypervisor.agent_url.encode())

    async def _about(self, _request: Request) -> Answer:
        vm, identity = self._sandbox.vm, self._sandbox.identity
        about = {
            "sandbox_id": self._sandbox.id,
            "cri_uid": identity.uid,
            "cri_name": identity.name,
            "cri_namespace": identity.namespace,
            "containers": sorted(self._sandbox.containers),
            "pid": 0 if vm is None else vm.pid,
            "hypervisor": "" if vm is None else vm.hypervisor.capabilities.vmm,
        }
        return Answer(body=json.dumps(about).encode(), content_type=JSON)

    async def _volume_stats(self, request: Request) -> Answer:
        path = request.query.get("path", "")
        if not path:
            raise InvalidArgument("the parameter path is missing: a volume's path on the host")
        stats = volume_stats(await self._volumes.stats(path))
        return Answer(body=json.dumps(stats).encode(), content_type=JSON)

    async def _volume_resize(self, request: Request) -> Answer:
        path, size = _resize_request(request.body)
        await self._volumes.resize(path, size)
        return Answer()

    async def _rules(self, request: Request) -> Answer:
        rules = await self._sandbox.agent.iptables(is_ipv6=request.path == "/ip6tables")
        return Answer(body=rules)

    async def _set_rules(self, request: Request) -> Answer:
        is_ipv6 = request.path == "/ip6tables"
        rules = await self._sandbox.agent.iptables(is_ipv6=is_ipv6, rules=request.body)
        return Answer(body=rules)

    async def _policy(self, _request: Request) -> Answer:
        return failure(501, "the guest's agent enforces no policy")


def _resize_request(body: bytes) -> tuple[str, int]:
    """The volume's path and its new size in bytes, by either runtime's names.

    Raises:
        InvalidArgument: it is no such JSON.
    """
    try:
        value: Any = json.loads(body)
    except ValueError as error:
        raise InvalidArgument(f"the content is no JSON: {error}") from None
    fields = {}
    if isinstance(value, dict):
        fields = {str(key).lower().replace("_", ""): item for key, item in value.items()}
    path = fields.get("volumepath") or fields.get("volumeguestpath")
    size = fields.get("size")
    if not isinstance(path, str) or not isinstance(size, int) or size is True or size <= 0:
        raise InvalidArgument('expected {"VolumePath": PATH, "Size": BYTES}')
    return path, size
