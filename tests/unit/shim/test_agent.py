"""What a guest answers, as far as the shim has to be on its guard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from protos.kata import agent_pb2
from shim.agent import Agent


@pytest.mark.parametrize(
    ("told", "status"), [(0, 0), (137, 137), (255, 255), (256, 255), (-1, 255)]
)
async def test_only_exit_codes_are_taken_for_such(told: int, status: int) -> None:
    async def wait_process(_request: object) -> agent_pb2.WaitProcessResponse:
        return agent_pb2.WaitProcessResponse(status=told)

    agent = Agent(cast(Any, None), frozenset(), {})
    agent._kata = SimpleNamespace(WaitProcess=wait_process)
    assert await agent.wait("c", "c") == status
