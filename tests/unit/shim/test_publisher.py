"""Events reach containerd in order, whatever becomes of it, and never hold anything up."""

from __future__ import annotations

import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty

from protos.containerd import events_pb2, ttrpc_events_pb2, types_pb2
from shim import publisher as module
from shim.log import DEBUG, Log
from shim.publisher import ATTEMPTS_MAX, CALL_TIMEOUT, CAPACITY, Publisher
from shim.ttrpc import status
from shim.ttrpc.server import Server
from shim.ttrpc.service import CallContext, Method, Service

LIMIT = 60.0


class Containerd:
    """The events service of a daemon that can go away and come back.

    ``answer`` may raise, or wait, before an event counts as taken.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "e.sock"
        self.tried: list[str] = []
        self.taken: list[types_pb2.Envelope] = []
        self.namespaces: set[str | None] = set()
        self._took = trio.Event()
        self.answer: Callable[[str], Awaitable[None]] | None = None

    @property
    def topics(self) -> list[str]:
        return [envelope.topic for envelope in self.taken]

    async def _forward(
        self, request: ttrpc_events_pb2.ForwardRequest, context: CallContext
    ) -> Empty:
        self.tried.append(request.envelope.topic)
        if self.answer is not None:
            await self.answer(request.envelope.topic)
        self.namespaces.add(context.value("containerd-namespace-ttrpc"))
        self.taken.append(request.envelope)
        self._took.set()
        return Empty()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        forward = Method(
            "Forward", self._forward, ttrpc_events_pb2.ForwardRequest.FromString, _serialize
        )
        server = Server([Service("containerd.services.events.ttrpc.v1.Events", [forward])])
        # Not trio's, which binds in a thread, and the clock would jump meanwhile.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener)
            yield
            nursery.cancel_scope.cancel()
        self.path.unlink()

    async def has(self, count: int) -> None:
        """Wait until that many events are taken."""
        with trio.fail_after(LIMIT):
            while len(self.taken) < count:
                self._took = trio.Event()
                await self._took.wait()


def _serialize(message: Empty) -> bytes:
    return message.SerializeToString()


@pytest.fixture
def containerd(tmp_path: Path) -> Containerd:
    return Containerd(tmp_path)


class Running:
    """A publisher that runs, and what it logged."""

    def __init__(self, publisher: Publisher, log: Path) -> None:
        self.publisher = publisher
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def publish(self, *topics: str) -> None:
        for topic in topics:
            self.publisher.publish(topic, events_pb2.TaskStart(container_id="c", pid=7))


@asynccontextmanager
async def running(
    folder: Path, address: Path | str = "", binary: Path | str = ""
) -> AsyncIterator[Running]:
    file = folder / "log"
    publisher = Publisher(
        "ns",
        Log(-1, DEBUG, file=str(file)),
        ttrpc_address=str(address),
        grpc_address="/grpc.sock",
        publish_binary=str(binary),
    )
    with trio.fail_after(LIMIT * 10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.run)
            yield Running(publisher, file)
            nursery.cancel_scope.cancel()


async def test_order_and_content(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    topics = [f"/t/{number}" for number in range(200)]
    async with containerd.running(), running(tmp_path, f"unix://{containerd.path}") as running_:
        running_.publish(*topics)
        await running_.publisher.drain(10)
        assert containerd.topics == topics
        first = containerd.taken[0]
        assert (first.namespace, first.event.type_url) == ("ns", "containerd.events.TaskStart")
        assert events_pb2.TaskStart.FromString(first.event.value).pid == 7
        stamps = [envelope.timestamp.ToNanoseconds() for envelope in containerd.taken]
        assert stamps == sorted(stamps)
        assert containerd.namespaces == {"ns"}


async def test_a_daemon_that_restarts_gets_everything_once_and_in_order(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(tmp_path, containerd.path) as running_:
        async with containerd.running():
            running_.publish("/t/1", "/t/2")
            await containerd.has(2)
        running_.publish("/t/3", "/t/4")
        await trio.sleep(2.5)  # it is away for longer than the first pauses
        async with containerd.running():
            running_.publish("/t/5")
            await containerd.has(5)
        assert containerd.topics == [f"/t/{number}" for number in range(1, 6)]
        assert "dropped" not in running_.log


async def test_the_first_call_after_a_restart_is_no_failed_attempt(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(tmp_path, containerd.path) as running_:
        for number in range(2 * ATTEMPTS_MAX):
            async with containerd.running():
                running_.publish(f"/t/{number}")
                await containerd.has(number + 1)
        assert len(containerd.tried) == 2 * ATTEMPTS_MAX
        assert "dropped" not in running_.log


async def test_an_event_that_is_never_taken_is_dropped_and_the_next_one_sent(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async def refuse(topic: str) -> None:
        if topic == "/bad":
            raise status.TtrpcError(status.UNAVAILABLE, "try later")

    containerd.answer = refuse
    async with containerd.running(), running(tmp_path, containerd.path) as running_:
        running_.publish("/a", "/bad", "/b")
        await containerd.has(2)
        assert containerd.topics == ["/a", "/b"]
        assert containerd.tried == ["/a", *["/bad"] * (ATTEMPTS_MAX + 1), "/b"]
        assert 'msg="event dropped"' in running_.log
        assert "topic=/bad" in running_.log
        assert "try later" in running_.log


async def test_an_event_that_is_wrong_is_not_tried_again(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async def refuse(topic: str) -> None:
        if topic == "/bad":
            raise status.TtrpcError(status.INVALID_ARGUMENT, "no such topic")

    containerd.answer = refuse
    async with containerd.running(), running(tmp_path, containerd.path) as running_:
        running_.publish("/bad", "/b")
        await containerd.has(1)
        assert containerd.tried == ["/bad", "/b"]


async def test_a_daemon_that_does_not_answer(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(topic: str) -> None:
        if len(containerd.tried) == 1:
            await trio.sleep_forever()

    containerd.answer = hang
    async with containerd.running(), running(tmp_path, containerd.path) as running_:
        before = trio.current_time()
        running_.publish("/a", "/b")
        await containerd.has(2)
        assert containerd.topics == ["/a", "/b"]
        assert trio.current_time() - before >= CALL_TIMEOUT


async def test_drain_gives_up_in_time_and_says_how_many_are_lost(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(tmp_path, containerd.path) as running_:  # nobody listens
        running_.publish("/a", "/b", "/c")
        before = trio.current_time()
        await running_.publisher.drain(3)
        assert trio.current_time() - before == pytest.approx(3, abs=0.5)
        assert "events=3" in running_.log


async def test_after_drain_nothing_is_taken(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async with containerd.running(), running(tmp_path, containerd.path) as running_:
        await running_.publisher.drain(3)
        running_.publish("/late")
        await running_.publisher.drain(3)
        assert containerd.tried == []
        assert "the shim is ending" in running_.log


async def test_a_full_queue_drops_the_newest(
    tmp_path: Path, containerd: Containerd, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(tmp_path, containerd.path) as running_:
        running_.publish(*(f"/t/{number}" for number in range(CAPACITY + 2)))
        assert running_.log.count("the queue is full") == 2
        assert f"topic=/t/{CAPACITY + 1}" in running_.log
        async with containerd.running():
            await running_.publisher.drain(LIMIT)
        assert containerd.topics == [f"/t/{number}" for number in range(CAPACITY)]


def _program(folder: Path, body: str) -> Path:
    path = folder / "containerd"
    path.write_text(f"#!{sys.executable}\nimport sys\nfolder = {str(folder)!r}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def test_without_a_ttrpc_address_containerd_s_program_publishes(tmp_path: Path) -> None:
    program = _program(
        tmp_path,
        "with open(folder + '/calls', 'a') as calls:\n"
        "    print(*sys.argv[1:], sys.stdin.buffer.read().hex(), file=calls)\n",
    )
    async with running(tmp_path, binary=program) as running_:
        running_.publish("/a", "/b")
        await running_.publisher.drain(LIMIT)
    start = events_pb2.TaskStart(container_id="c", pid=7)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [line.rpartition(" ")[0] for line in calls] == [
        f"--address /grpc.sock publish --topic {topic} --namespace ns" for topic in ("/a", "/b")
    ]
    for line in calls:
        sent = bytes.fromhex(line.rpartition(" ")[2])
        assert b"containerd.events.TaskStart" in sent
        assert start.SerializeToString() in sent


async def test_the_program_is_tried_again_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_PAUSE", 0.001)
    program = _program(tmp_path, "open(folder + '/calls', 'a').write('x')\nsys.exit('not today')\n")
    async with running(tmp_path, binary=program) as running_:
        running_.publish("/a")
        await running_.publisher.drain(LIMIT)
        assert (tmp_path / "calls").read_text() == "x" * (ATTEMPTS_MAX + 1)
        assert "not today" in running_.log


async def test_without_a_receiver_events_are_logged(tmp_path: Path) -> None:
    async with running(tmp_path) as running_:
        assert not running_.publisher.has_receiver
        running_.publish("/a", "/b")
        await running_.publisher.drain(LIMIT)
        assert "topic=/a" in running_.log
        assert 'container_id: \\"c\\" pid: 7' in running_.log
        assert "dropped" not in running_.log
