"""A session with the guest's agent: what it offers is known from its first answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from protos.katapy import extension_pb2
from shim.agent import HEALTH_TIMEOUT_S, Agent
from shim.ttrpc import status
from shim.ttrpc.client import open_client
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError


@asynccontextmanager
async def connect(
    stream: trio.SocketStream, timeout: float = HEALTH_TIMEOUT_S
) -> AsyncGenerator[Agent, None]:
    """Speak to the agent at the other end of a connected stream.

    Args:
        stream: a byte stream to the agent, any channel preface already done.
        timeout: seconds until its first answer.

    Yields:
        The agent, which has answered once.
    """
    async with open_client(stream) as client:
        extension: Any = stub(client, extension_pb2.DESCRIPTOR.services_by_name["Extension"])
        try:
            hello = await extension.Hello(extension_pb2.HelloRequest(), timeout=timeout)
        except TtrpcError as err:
            if err.code != status.UNIMPLEMENTED:
                raise
            agent = Agent(client, frozenset(), {})
            await agent.check(timeout)
        else:
            agent = Agent(client, frozenset(hello.features), dict(hello.boot_stamps))
        yield agent
