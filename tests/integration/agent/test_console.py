"""The debug console: programs in the machine itself, on pipes and on a terminal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from protos.katapy import extension_pb2
from protos.katapy.extension_pb2 import ConsoleFrame
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest, run_agent
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def console_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with run_agent(tmp_path_factory.mktemp("agent"), "--debug-console", "true") as running:
        yield running


@pytest.fixture
async def client(console_agent: AgentProcess) -> AsyncIterator[Client]:
    async with console_agent.connect() as connected:
        yield connected.client


class Console:
    """The host's end of one."""

    def __init__(self, client: Client) -> None:
        self.stream = client.stream("katapy.agent.v1.Extension", "Console")
        self.output = {2: b"", 3: b""}
        self.code: int | None = None

    async def send(self, **fields: Any) -> None:
        await self.stream.send(ConsoleFrame(**fields).SerializeToString())

    async def until(self, text: bytes) -> None:
        """Receive until the output has a text."""
        with trio.fail_after(LIMIT):
            while text not in self.output[2]:
                assert await self.receive(), self.output

    async def finish(self) -> int:
        """Receive until the program has ended; give its code."""
        with trio.fail_after(LIMIT):
            while await self.receive():
                pass
        assert self.code is not None
        return self.code

    async def receive(self) -> bool:
        data = await self.stream.receive()
        if data is None:
            return False
        frame = ConsoleFrame.FromString(data)
        if frame.exited:
            self.code = frame.exit_code
        elif frame.data:
            self.output[frame.channel] += frame.data
            with suppress(TtrpcError):  # the agent may have ended the stream meanwhile
                await self.send(channel=frame.channel, credit=len(frame.data))
        return True


async def start(client: Client, *args: str, **fields: Any) -> Console:
    console = Console(client)
    await console.send(args=args, credit=1 << 16, **fields)
    return console


async def test_a_command_with_its_streams_and_its_code(client: Client) -> None:
    hello = await extension_hello(client)
    assert "console" in hello.features
    console = await start(client, "sh", "-c", "cat; echo bad >&2; exit 7")
    await console.send(channel=1, data=b"through ")
    await console.send(channel=1, data=b"stdin")
    await console.send(channel=1, eof=True)
    assert await console.finish() == 7
    assert console.output == {2: b"through stdin", 3: b"bad\n"}


async def test_more_than_a_window_arrives_whole(client: Client) -> None:
    console = await start(client, "/bin/sh", "-c", "head -c 1000000 /dev/zero")
    assert await console.finish() == 0
    assert console.output[2] == bytes(1_000_000)


async def test_a_shell_on_a_terminal(client: Client) -> None:
    console = await start(client, terminal=True, rows=33, columns=77, term="vt100")
    await console.send(channel=1, data=b"stty size; echo $TERM; tty\n")
    await console.until(b"33 77")
    await console.until(b"vt100\r\n/dev/pts/")
    await console.send(rows=40, columns=100)
    await console.send(channel=1, data=b"stty size\n")
    await console.until(b"40 100")
    # It is the session's own terminal: the key reaches what runs in the foreground.
    await console.send(channel=1, data=b"sleep 1000\n")
    await console.until(b"sleep 1000")
    with trio.fail_after(LIMIT):
        while b"ended=130" not in console.output[2]:  # sleep may not have begun yet
            await console.send(channel=1, data=b"\x03")
            await console.send(channel=1, data=b"echo ended=$?\n")
            with trio.move_on_after(0.3):
                await console.until(b"ended=130")
    await console.send(channel=1, data=b"exit 3\n")
    assert await console.finish() == 3


async def test_output_that_is_closed_is_no_end(client: Client) -> None:
    console = await start(client, "sh", "-c", "exec >/dev/null 2>&1; sleep 1; exit 4")
    assert await console.finish() == 4


async def test_what_the_host_lets_go_of_is_ended(
    console_agent: AgentProcess, client: Client
) -> None:
    def children() -> str:
        path = Path(f"/proc/{console_agent.pid}/task/{console_agent.pid}/children")
        return path.read_text()

    before = children()
    console = await start(client, "sh", "-c", "sleep 1001 & echo ready; wait")
    await console.until(b"ready")
    assert children() != before
    console.stream.close_send()
    assert await console.finish() == 137
    # And when the whole connection is gone.
    async with console_agent.connect() as other:
        lost = await start(other.client, "sleep", "1002")
        await trio.to_thread.run_sync(
            lambda: eventually(lambda: children() != before, "it runs", timeout=LIMIT)
        )
        lost.stream.cancel()
    await trio.to_thread.run_sync(
        lambda: eventually(lambda: children() == before, "it is ended", timeout=LIMIT)
    )


async def test_what_can_not_be_run(client: Client) -> None:
    for program in ("no-such-program", "/etc/passwd"):
        console = await start(client, program)
        with pytest.raises(TtrpcError, match=program) as caught:
            await console.finish()
        assert caught.value.code == status.NOT_FOUND


async def test_without_being_asked_for_there_is_none(guest: Guest) -> None:
    hello = await extension_hello(guest.client)
    assert "console" not in hello.features
    console = await start(guest.client, "true")
    with pytest.raises(TtrpcError, match="debug_console") as caught:
        await console.finish()
    assert caught.value.code == status.FAILED_PRECONDITION


async def extension_hello(client: Client) -> extension_pb2.HelloResponse:
    request = extension_pb2.HelloRequest().SerializeToString()
    answer = await client.call("katapy.agent.v1.Extension", "Hello", request, LIMIT)
    return extension_pb2.HelloResponse.FromString(answer)
