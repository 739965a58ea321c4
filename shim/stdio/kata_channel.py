"""Stdio over the ReadStdout, ReadStderr, WriteStdin and CloseStdin calls of a Kata agent.

An agent forgets a process once it was waited for, so an error about the process is the
end of its streams; only a lost connection is a failure.

Source: kata-containers agent.proto; kata-agent-wire.md §2.2.
"""

from __future__ import annotations

from typing import Any

import trio

from protos.kata import agent_pb2
from shim.stdio.channel import GuestLost, StdinGone
from shim.stdio.frames import STDERR, STDOUT
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

LENGTH = 64 << 10
"""Bytes asked for, or sent, in one call; a pipe in the guest holds no more."""

_LOST = frozenset((status.UNAVAILABLE, status.CANCELLED, status.DEADLINE_EXCEEDED))


class KataChannel:
    """A :class:`~shim.stdio.channel.GuestChannel` on AgentService.

    Args:
        agent: the typed client of ``grpc.AgentService``.
        container_id: the process's container.
        exec_id: its exec id; empty or equal to ``container_id`` for the init.
        terminal: there is no stderr; an agent would answer it from the terminal too.
    """

    def __init__(
        self, agent: Any, container_id: str, exec_id: str = "", *, terminal: bool = False
    ) -> None:
        self._agent = agent
        self._ids = {"container_id": container_id, "exec_id": exec_id or container_id}
        self._reads = {STDOUT: agent.ReadStdout}
        if not terminal:
            self._reads[STDERR] = agent.ReadStderr

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing: every call stands alone."""
        task_status.started()

    async def read(self, channel: int) -> bytes | memoryview:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        if channel not in self._reads:
            return b""
        try:
            reply = await self._reads[channel](agent_pb2.ReadStreamRequest(**self._ids, len=LENGTH))
        except TtrpcError as error:
            _raise_if_lost(error)
            return b""
        data: bytes = reply.data
        return data

    async def written(self, channel: int, count: int) -> None:
        """Do nothing: what is not asked for is not sent."""

    async def write_stdin(self, data: bytes) -> None:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        rest = data
        while rest:
            request = agent_pb2.WriteStreamRequest(**self._ids, data=rest[:LENGTH])
            try:
                reply = await self._agent.WriteStdin(request)
            except TtrpcError as error:
                _raise_if_lost(error)
                raise StdinGone(f"stdin: {error}") from error
            if not 0 < reply.len <= len(request.data):
                raise StdinGone(f"stdin: the agent took {reply.len} of {len(request.data)} bytes")
            rest = rest[reply.len :]

    async def close_stdin(self) -> None:
        """See :class:`~shim.stdio.channel.GuestChannel`."""
        try:
            await self._agent.CloseStdin(agent_pb2.CloseStdinRequest(**self._ids))
        except TtrpcError as error:
            _raise_if_lost(error)


def _raise_if_lost(error: TtrpcError) -> None:
    if error.code in _LOST:
        raise GuestLost(f"stdio: the agent is gone: {error}") from error
