"""A shim's Task service, called directly: for what ctr has no command for."""

from __future__ import annotations

import json
from typing import Any

import trio

from protos.containerd import cgroups_v1_pb2, cgroups_v2_pb2, task_v2_pb2
from shim.translate import RESOURCES_TYPE
from shim.ttrpc.client import open_client
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError
from tests.support.ctr import Ctr

CALL_TIMEOUT = 90.0

Metrics = cgroups_v1_pb2.Metrics | cgroups_v2_pb2.Metrics


def call(ctr: Ctr, container: str, method: str, request: Any) -> Any:
    """Call a method of the shim that a container is in. Raises: TtrpcError."""
    bundle = ctr.daemon.folder / "state/io.containerd.runtime.v2.task" / ctr.namespace / container
    path = (bundle / "address").read_text().strip().removeprefix("unix://")

    async def once() -> Any:
        async with open_client(await trio.open_unix_socket(path)) as client:
            service: Any = stub(client, task_v2_pb2.DESCRIPTOR.services_by_name["Task"])
            try:
                return await getattr(service, method)(request, timeout=CALL_TIMEOUT)
            except TtrpcError as error:
                return error  # raised where no nursery makes a group of it

    answer = trio.run(once)
    if isinstance(answer, TtrpcError):
        raise answer
    return answer


def update(ctr: Ctr, container: str, resources: dict[str, Any]) -> None:
    """Change a container's limits (OCI ``linux.resources``). Raises: TtrpcError."""
    request = task_v2_pb2.UpdateTaskRequest(id=container)
    request.resources.type_url = RESOURCES_TYPE
    request.resources.value = json.dumps(resources).encode()
    call(ctr, container, "Update", request)


def stats(ctr: Ctr, container: str) -> Metrics:
    """A container's counters, in whichever of the two forms they come."""
    answer = call(ctr, container, "Stats", task_v2_pb2.StatsRequest(id=container)).stats
    kinds: dict[str, type[Metrics]] = {
        "io.containerd.cgroups.v1.Metrics": cgroups_v1_pb2.Metrics,
        "io.containerd.cgroups.v2.Metrics": cgroups_v2_pb2.Metrics,
    }
    return kinds[answer.type_url].FromString(answer.value)
