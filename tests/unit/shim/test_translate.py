"""What a client sends, on its way to the core."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any

from protos.containerd import task_v2_pb2
from shim import translate
from shim.errors import InvalidArgument

PROCESS = {"args": ["true"], "cwd": "/", "terminal": False}


def exec_request(process: object, type_url: str = translate.PROCESS_TYPE) -> object:
    spec = Any(type_url=type_url, value=json.dumps(process).encode())
    return translate.exec_request(
        task_v2_pb2.ExecProcessRequest(id="c", exec_id="e", terminal=True, spec=spec)
    )


def test_the_requests_terminal_wins_over_the_specs() -> None:
    request = exec_request({**PROCESS, "rlimits": None})
    assert request.process == {**PROCESS, "terminal": True}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "process",
    [
        [],
        {"cwd": "/"},
        {**PROCESS, "args": "true"},
        {**PROCESS, "user": "root"},
        {**PROCESS, "rlimits": [7]},
        {**PROCESS, "cwd": "relative"},
    ],
)
def test_a_malformed_process_is_refused(process: object) -> None:
    with pytest.raises(InvalidArgument, match="process of exec e"):
        exec_request(process)


def test_another_type_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="is of type"):
        exec_request(PROCESS, "types.containerd.io/else")


@pytest.mark.parametrize("resources", [b"[]", b"{", b'{"cpu": 1}', b'{"memory": [1]}'])
def test_malformed_resources_are_refused(resources: bytes) -> None:
    with pytest.raises(InvalidArgument, match="resources"):
        translate.resources(Any(type_url=translate.RESOURCES_TYPE, value=resources))
