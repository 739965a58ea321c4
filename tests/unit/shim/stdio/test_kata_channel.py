from __future__ import annotations

import pytest

from protos.kata import agent_pb2
from shim.stdio.channel import GuestLost, StdinGone
from shim.stdio.frames import STDERR, STDOUT
from shim.stdio.kata_channel import LENGTH, KataChannel
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError


class Agent:
    """A Kata agent with one process: output to give out, a stdin that takes 1000 bytes a call."""

    def __init__(self, output: bytes = b"") -> None:
        self.output = output
        self.stdin = b""
        self.closed = False
        self.error: TtrpcError | None = None
        self.asked: list[tuple[str, str]] = []

    def _seen(self, request: object) -> None:
        assert isinstance(
            request,
            agent_pb2.ReadStreamRequest
            | agent_pb2.WriteStreamRequest
            | agent_pb2.CloseStdinRequest,
        )
        self.asked.append((request.container_id, request.exec_id))
        if self.error is not None:
            raise self.error

    async def ReadStdout(
        self, request: agent_pb2.ReadStreamRequest
    ) -> agent_pb2.ReadStreamResponse:
        self._seen(request)
        data, self.output = self.output[: request.len], self.output[request.len :]
        return agent_pb2.ReadStreamResponse(data=data)

    ReadStderr = ReadStdout

    async def WriteStdin(
        self, request: agent_pb2.WriteStreamRequest
    ) -> agent_pb2.WriteStreamResponse:
        self._seen(request)
        taken = request.data[:1000]
        self.stdin += taken
        return agent_pb2.WriteStreamResponse(len=len(taken))

    async def CloseStdin(self, request: agent_pb2.CloseStdinRequest) -> None:
        self._seen(request)
        self.closed = True


async def test_output_is_read_to_its_end() -> None:
    agent = Agent(bytes(LENGTH + 5))
    channel = KataChannel(agent, "c", "e")
    parts = [await channel.read(STDOUT) for _ in range(3)]
    assert [len(part) for part in parts] == [LENGTH, 5, 0]
    assert set(agent.asked) == {("c", "e")}


async def test_the_init_goes_by_the_containers_id() -> None:
    agent = Agent()
    await KataChannel(agent, "c").read(STDERR)
    assert agent.asked == [("c", "c")]


async def test_a_terminal_has_no_stderr_to_read() -> None:
    agent = Agent(b"prompt")
    assert await KataChannel(agent, "c", terminal=True).read(STDERR) == b""
    assert agent.output == b"prompt"


async def test_stdin_that_is_taken_in_part_is_sent_on() -> None:
    agent = Agent()
    channel = KataChannel(agent, "c")
    data = bytes(range(256)) * 300
    await channel.write_stdin(data)
    await channel.close_stdin()
    assert agent.stdin == data
    assert agent.closed


@pytest.mark.parametrize("code", [status.NOT_FOUND, status.INVALID_ARGUMENT, status.INTERNAL])
async def test_a_process_the_agent_has_forgotten_is_at_its_end(code: int) -> None:
    agent = Agent(b"x")
    agent.error = TtrpcError(code, "no such process")
    channel = KataChannel(agent, "c")
    assert await channel.read(STDOUT) == b""
    await channel.close_stdin()
    with pytest.raises(StdinGone):
        await channel.write_stdin(b"x")


async def test_a_lost_connection_is_no_end() -> None:
    agent = Agent(b"x")
    agent.error = TtrpcError(status.UNAVAILABLE, "ttrpc: closed")
    channel = KataChannel(agent, "c")
    for call in (channel.read(STDOUT), channel.write_stdin(b"x"), channel.close_stdin()):
        with pytest.raises(GuestLost):
            await call
