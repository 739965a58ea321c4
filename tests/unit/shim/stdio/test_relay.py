"""The relay between real FIFOs and the guest's end of a stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from shim.errors import InvalidArgument, NotFound
from shim.stdio.channel import WINDOW, GuestLost
from shim.stdio.frames import STDERR, STDOUT
from shim.stdio.relay import Relay
from shim.stdio.stdio import Stdio, open_stdio
from shim.stdio.stream_channel import StreamChannel
from tests.unit.shim.stdio.guest_end import GuestEnd

MIB = 1 << 20


class Fifos:
    def __init__(self, directory: Path) -> None:
        self.stdin, self.stdout, self.stderr = (
            str(directory / name) for name in ("stdin", "stdout", "stderr")
        )
        for path in (self.stdin, self.stdout, self.stderr):
            os.mkfifo(path)

    async def open(self) -> Stdio:
        return await open_stdio(
            self.stdin, self.stdout, self.stderr, False, container_id="c", namespace="n"
        )


@pytest.fixture
def fifos(tmp_path: Path) -> Fifos:
    return Fifos(tmp_path)


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    def names() -> list[str]:
        links = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                continue
        return sorted(link for link in links if "pytest" in link or link.startswith("pipe:"))

    before = names()
    yield
    assert names() == before


@asynccontextmanager
async def relaying(stdio: Stdio, end: GuestEnd) -> AsyncIterator[Relay]:
    """A relay whose process exits when the block ends."""
    async with Relay(stdio, StreamChannel(end, "c")) as relay:
        yield relay
        await relay.finish()
    await stdio.aclose()
    assert end.detached.is_set()


@contextmanager
def reader(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


async def read_all(fd: int, chunk: int = 65536) -> bytes:
    data = bytearray()
    while True:
        try:
            part = os.read(fd, chunk)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            continue
        if not part:
            return bytes(data)
        data += part
        await trio.lowlevel.checkpoint()


async def read_some(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            data += os.read(fd, count - len(data))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
    return data


async def test_output_arrives_whole_and_in_order(fifos: Fifos) -> None:
    blocks = [os.urandom(64 << 10) for _ in range(64)]
    with reader(fifos.stdout) as out, reader(fifos.stderr) as err:
        stdio, end = await fifos.open(), GuestEnd()
        digest = hashlib.sha256()

        async def produce() -> None:
            await end.output(STDOUT, (blocks[n % 64] for n in range(512)))
            end.finish()

        async def consume() -> None:
            while True:
                try:
                    part = os.read(out, 1 << 20)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(out)
                    continue
                if not part:
                    return
                digest.update(part)
                await trio.lowlevel.checkpoint()

        async with relaying(stdio, end), trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            nursery.start_soon(consume)
        expected = hashlib.sha256()
        for n in range(512):
            expected.update(blocks[n % 64])
        assert digest.digest() == expected.digest()
        assert await read_all(err) == b""


async def test_a_slow_reader_bounds_what_the_guest_may_send(fifos: Fifos) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end), trio.open_nursery() as nursery:

            async def produce() -> None:
                await end.output(STDOUT, [bytes(MIB)] * 8)
                end.finish()

            nursery.start_soon(produce)
            await trio.testing.wait_all_tasks_blocked()
            assert end.credit[STDOUT] < WINDOW
            assert len(await read_all(out)) == 8 * MIB
        assert end.max_ahead <= WINDOW


async def test_a_stalled_stdout_does_not_hold_stderr_back(fifos: Fifos) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr) as err:
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end.output, STDOUT, [bytes(4 * MIB)])
                await trio.testing.wait_all_tasks_blocked()
                await end.output(STDERR, [b"still here"])
                assert await read_some(err, 10) == b"still here"
                nursery.cancel_scope.cancel()
            end.finish()
            await read_all(out)


async def test_fifos_get_their_end_of_file_once_the_output_has_ended(fifos: Fifos) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr) as err:
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end):
            await end.output(STDOUT, [b"bye"])
            end.finish()
            assert await read_all(out) == b"bye"  # returns only on end of file
            assert await read_all(err) == b""


async def test_output_that_still_flows_after_the_exit_is_not_lost(fifos: Fifos) -> None:
    """A client may even have asked for Shutdown while 8 MiB are on their way."""
    payload = os.urandom(8 * MIB)
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        drained = trio.Event()
        async with relaying(stdio, end) as relay, trio.open_nursery() as nursery:

            async def produce() -> None:
                await end.output(STDOUT, [payload])
                end.finish()

            async def finish() -> None:
                await relay.finish()
                drained.set()

            nursery.start_soon(produce)
            nursery.start_soon(finish)
            await trio.testing.wait_all_tasks_blocked()
            assert not drained.is_set()
            assert await read_all(out) == payload
            await drained.wait()


async def test_a_reader_that_never_reads_ends_with_the_cap(
    fifos: Fifos, autojump_clock: trio.testing.MockClock
) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end) as relay, trio.open_nursery() as nursery:
            nursery.start_soon(end.output, STDOUT, [bytes(8 * MIB)])
            await trio.testing.wait_all_tasks_blocked()
            exited = trio.current_time()
            await relay.finish()
            assert trio.current_time() - exited == pytest.approx(30)
            nursery.cancel_scope.cancel()
        assert await read_all(out)  # what was in the FIFO, then its end of file


async def test_without_any_reader_the_exit_is_not_held_up(
    fifos: Fifos, autojump_clock: trio.testing.MockClock
) -> None:
    stdio, end = await fifos.open(), GuestEnd()
    async with relaying(stdio, end) as relay, trio.open_nursery() as nursery:

        async def produce() -> None:
            await end.output(STDOUT, [bytes(8 * MIB)])
            end.finish()

        nursery.start_soon(produce)
        await trio.testing.wait_all_tasks_blocked()
        exited = trio.current_time()
        await relay.finish()
        assert trio.current_time() - exited < 1


async def test_a_reader_may_go_and_another_come(fifos: Fifos) -> None:
    stdio, end = await fifos.open(), GuestEnd()
    async with relaying(stdio, end):
        with reader(fifos.stdout) as out:
            await end.output(STDOUT, [b"one"])
            assert await read_some(out, 3) == b"one"
        await end.output(STDOUT, [b"two"])  # nobody is there
        await trio.testing.wait_all_tasks_blocked()
        with reader(fifos.stdout) as out:
            await end.output(STDOUT, [b"three"])
            assert await read_some(out, 8) == b"twothree"
            end.finish()
            assert await read_all(out) == b""


async def test_stdin_survives_a_detached_client_and_ends_with_close_io(fifos: Fifos) -> None:
    with reader(fifos.stdout), reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end):
            for text in (b"first", b"second"):
                writer = os.open(fifos.stdin, os.O_WRONLY | os.O_NONBLOCK)
                os.write(writer, text)
                os.close(writer)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not end.stdin_eof.is_set()
            stdio.close_stdin()
            await end.stdin_eof.wait()
            assert end.stdin == b"firstsecond"
            stdio.close_stdin()
            end.finish()


async def test_close_io_takes_effect_after_the_pending_bytes(fifos: Fifos) -> None:
    with reader(fifos.stdout), reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        writer = os.open(fifos.stdin, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"pending")
        stdio.close_stdin()  # before there is a process, and with the client still there
        async with relaying(stdio, end):
            await end.stdin_eof.wait()
            assert end.stdin == b"pending"
            end.finish()
        os.close(writer)


async def test_stdin_is_carried_whole(fifos: Fifos) -> None:
    payload = os.urandom(8 * MIB)
    with reader(fifos.stdout), reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()

        def feed() -> None:
            with open(fifos.stdin, "wb") as writer:
                writer.write(payload)

        async with relaying(stdio, end):
            await trio.to_thread.run_sync(feed)
            stdio.close_stdin()
            await end.stdin_eof.wait()
            assert end.stdin == payload
            end.finish()


async def test_no_stdin_is_closed_at_once(fifos: Fifos) -> None:
    stdio = await open_stdio("", "", "", False, container_id="c", namespace="n")
    end = GuestEnd()
    async with relaying(stdio, end):
        await end.stdin_eof.wait()
        await end.output(STDOUT, [b"discarded"])
        end.finish()


async def test_a_lost_connection_writes_what_had_come_and_another_goes_on(fifos: Fifos) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, first, second = await fifos.open(), GuestEnd(), GuestEnd()
        async with Relay(stdio, StreamChannel(first, "c")):
            await first.output(STDOUT, [b"before "])
            first.lose()
            assert await read_some(out, 7) == b"before "
        async with relaying(stdio, second):
            await second.output(STDOUT, [b"after"])
            second.finish()
        assert await read_all(out) == b"after"


async def test_a_lost_guest_is_not_waited_for(
    fifos: Fifos, autojump_clock: trio.testing.MockClock
) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end) as relay:
            await end.output(STDOUT, [b"last words"])
            end.lose()
            await relay.finish()
            assert trio.current_time() < 1
        assert await read_all(out) == b"last words"


async def test_an_abandoned_guest_may_be_silent(
    fifos: Fifos, autojump_clock: trio.testing.MockClock
) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end) as relay:
            await end.output(STDOUT, [b"last words"])
            await trio.testing.wait_all_tasks_blocked()
            relay.abandon()
            await relay.finish()
            assert trio.current_time() < 1
        assert await read_all(out) == b"last words"


async def test_a_process_that_cannot_be_attached_to_is_an_error(fifos: Fifos) -> None:
    stdio, end = await fifos.open(), GuestEnd()
    end.refuse = True
    with pytest.raises(GuestLost, match="ttrpc: closed"):
        async with Relay(stdio, StreamChannel(end, "c")):
            pytest.fail("attached")
    await stdio.aclose()


async def test_an_agent_that_ignores_its_credit_is_cut_off(fifos: Fifos) -> None:
    with reader(fifos.stdout) as out, reader(fifos.stderr):
        stdio, end = await fifos.open(), GuestEnd()
        async with relaying(stdio, end) as relay:
            end.credit[STDOUT] = 1 << 30
            await end.output(STDOUT, [bytes(WINDOW + 1)])
            end.eof(STDOUT)
            await relay.finish()
        assert await read_all(out) == b""


async def test_a_terminal_has_one_output(fifos: Fifos) -> None:
    with reader(fifos.stdout) as out:
        stdio = await open_stdio(
            fifos.stdin, fifos.stdout, "", True, container_id="c", namespace="n"
        )
        end = GuestEnd()
        async with relaying(stdio, end):
            await end.output(STDOUT, [b"prompt$ "])
            end.eof(STDOUT)
            end.end()
        assert await read_all(out) == b"prompt$ "


async def test_file_uris_append_both_outputs_to_one_file(tmp_path: Path) -> None:
    log = tmp_path / "new" / "dir" / "out.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"old\n")
    stdio = await open_stdio("", f"file://{log}", "", False, container_id="c", namespace="n")
    end = GuestEnd()
    async with relaying(stdio, end):
        await end.output(STDOUT, [b"out\n"])
        await trio.testing.wait_all_tasks_blocked(0.05)
        await end.output(STDERR, [b"err\n"])
        end.finish()
    assert log.read_bytes() == b"old\nout\nerr\n"


async def test_paths_that_cannot_serve_are_refused(fifos: Fifos, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(NotFound, match="missing"):
        await open_stdio(
            fifos.stdin, str(tmp_path / "missing"), "", False, container_id="c", namespace="n"
        )
    with pytest.raises(InvalidArgument, match="not a FIFO"):
        await open_stdio(str(plain), "", "", False, container_id="c", namespace="n")
