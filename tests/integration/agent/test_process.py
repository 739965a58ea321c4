"""Processes of real containers, run by crun under an agent on the host."""

from __future__ import annotations

import hashlib
import signal

import pytest
import trio

from protos.kata import agent_pb2, health_pb2
from protos.katapy import extension_pb2
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest, Streams, process

pytestmark = pytest.mark.root


async def collect(streams: Streams) -> None:
    await streams.read_all()


async def test_health_and_hello(guest: Guest) -> None:
    reply = await guest.health.Check(health_pb2.CheckRequest(), timeout=LIMIT)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    hello = await guest.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)
    assert {"stdio-stream", "oci-json", "clock"} <= set(hello.features)
    assert hello.boot_stamps["serving"] >= hello.boot_stamps["start"] > 0


async def test_output_error_and_exit_code(guest: Guest) -> None:
    script = "echo out; echo err >&2; exit 7"
    assert await guest.run("c-basic", ["sh", "-c", script]) == (7, b"out\n", b"err\n")


async def test_init_does_not_run_before_start(guest: Guest) -> None:
    await guest.create("c-held", ["echo", "started"])
    streams = guest.streams("c-held")
    await streams.attach()
    with trio.move_on_after(0.3) as scope:
        await streams.until(b"started")
    assert scope.cancelled_caught
    await guest.start("c-held")
    await streams.read_all()
    assert streams.output[2] == b"started\n"
    with pytest.raises(TtrpcError) as caught:
        await guest.start("c-held")
    assert caught.value.code == status.FAILED_PRECONDITION
    await guest.remove("c-held")


async def test_exec_and_its_stdin(guest: Guest) -> None:
    await guest.create("c-exec", ["sleep", "1000"])
    await guest.start("c-exec")
    await guest.exec("c-exec", "e1", ["sh", "-c", "cat; exit 3"])
    streams = guest.streams("c-exec", "e1")
    await streams.attach()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, streams)
        await streams.write(b"hello")
        await streams.frame(channel=1, eof=True)
    assert streams.output[2] == b"hello"
    assert await guest.wait("c-exec", "e1") == 3
    with pytest.raises(TtrpcError) as caught:
        await guest.wait("c-exec", "e1")
    assert caught.value.code == status.NOT_FOUND
    # The id is free again.
    await guest.exec("c-exec", "e1", ["true"])
    assert (await guest.finish("c-exec", "e1"))[0] == 0
    await guest.signal("c-exec", signal.SIGKILL)
    assert await guest.wait("c-exec") == 128 + 9
    await guest.remove("c-exec")


async def test_ids_of_execs(guest: Guest) -> None:
    await guest.create("c-ids", ["sleep", "1000"])
    await guest.start("c-ids")
    await guest.exec("c-ids", "e", ["sleep", "1000"])
    for exec_id, code in (("", 3), ("c-ids", 3), ("e", status.ALREADY_EXISTS)):
        with pytest.raises(TtrpcError) as caught:
            await guest.exec("c-ids", exec_id, ["true"])
        assert caught.value.code == code
    await guest.remove("c-ids")


async def test_sigterm_kills_an_init_that_does_not_handle_it(guest: Guest) -> None:
    await guest.create("c-term", ["sleep", "1000"])
    await guest.start("c-term")
    await guest.exec("c-term", "probe", ["true"])  # init has passed its exec by now
    assert await guest.wait("c-term", "probe") == 0
    await guest.signal("c-term", signal.SIGTERM, "c-term")
    assert await guest.wait("c-term", "c-term") == 128 + 9
    await guest.remove("c-term")


async def test_sigterm_reaches_an_init_that_handles_it(guest: Guest) -> None:
    script = "trap 'exit 42' TERM; echo ready; while true; do sleep 0.1; done"
    await guest.create("c-trap", ["sh", "-c", script])
    await guest.start("c-trap")
    streams = guest.streams("c-trap")
    await streams.attach()
    await streams.until(b"ready")
    await guest.signal("c-trap", signal.SIGTERM)
    assert await guest.wait("c-trap") == 42
    with pytest.raises(TtrpcError, match="ESRCH") as caught:
        await guest.signal("c-trap", signal.SIGTERM)
    assert caught.value.code == status.NOT_FOUND
    await guest.remove("c-trap")


async def test_all_waiters_get_the_code(guest: Guest) -> None:
    codes: list[int] = []
    await guest.create("c-wait", ["sh", "-c", "cat; exit 5"])
    await guest.start("c-wait")

    async def wait() -> None:
        codes.append(await guest.wait("c-wait"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(wait)
        # The waits block nobody: this call is answered in between.
        await guest.health.Check(health_pb2.CheckRequest(), timeout=LIMIT)
        await guest.agent.CloseStdin(
            agent_pb2.CloseStdinRequest(container_id="c-wait"), timeout=LIMIT
        )
    assert codes == [5] * 20
    await guest.remove("c-wait")


async def test_terminal_and_its_size(guest: Guest) -> None:
    script = "stty size; read line; stty size; echo got $line"
    await guest.create("c-tty", ["sh", "-c", script], terminal=True)
    resize = agent_pb2.TtyWinResizeRequest(container_id="c-tty", row=40, column=100)
    await guest.agent.TtyWinResize(resize, timeout=LIMIT)
    await guest.start("c-tty")
    streams = guest.streams("c-tty")
    await streams.attach()
    await streams.until(b"40 100\r\n")
    resize.row, resize.column = 50, 132
    await guest.agent.TtyWinResize(resize, timeout=LIMIT)
    await streams.frame(channel=1, data=b"word\n")
    await streams.read_all()
    assert b"50 132\r\ngot word\r\n" in streams.output[2]
    assert await guest.wait("c-tty") == 0
    await guest.remove("c-tty")


async def test_exec_with_a_terminal(guest: Guest) -> None:
    await guest.create("c-etty", ["sleep", "1000"])
    await guest.start("c-etty")
    await guest.exec("c-etty", "t", ["sh", "-c", "stty size; test -t 0 && echo yes"], terminal=True)
    code, output, _ = await guest.finish("c-etty", "t")
    assert (code, output.endswith(b"yes\r\n")) == (0, True)
    await guest.remove("c-etty")


async def test_resize_without_a_terminal(guest: Guest) -> None:
    await guest.create("c-notty", ["true"])
    with pytest.raises(TtrpcError, match="no terminal") as caught:
        await guest.agent.TtyWinResize(
            agent_pb2.TtyWinResizeRequest(container_id="c-notty", row=1, column=1), timeout=LIMIT
        )
    assert caught.value.code == status.INVALID_ARGUMENT
    await guest.remove("c-notty")


@pytest.mark.parametrize("where", ["init", "exec"])
async def test_a_daemonised_grandchild_does_not_hold_the_exit(guest: Guest, where: str) -> None:
    name = f"c-daemon-{where}"
    script = ["sh", "-c", "(while true; do echo noise; sleep 0.05; done) & echo done"]
    host = {"linux": {"namespaces": [{"type": "mount"}]}}  # so that it outlives init
    await guest.create(name, script if where == "init" else ["sleep", "1000"], **host)
    await guest.start(name)
    exec_id = ""
    if where == "exec":
        exec_id = "d"
        await guest.exec(name, exec_id, script)
    with trio.fail_after(10):
        code, output, _ = await guest.finish(name, exec_id)
    assert (code, b"done\n" in output) == (0, True)
    await guest.remove(name)


async def test_bulk_output_is_complete_with_a_slow_reader(guest: Guest) -> None:
    script = "dd if=/dev/zero bs=64k count=512 2>/dev/null | sha256sum; head -c 16777216 /dev/zero"
    await guest.create("c-bulk", ["sh", "-c", script])
    await guest.start("c-bulk")
    streams = guest.streams("c-bulk", window=100_000)
    await streams.attach()
    while not streams.output[2] or streams.granted[2]:
        assert await streams.receive(regrant=False)
    with trio.move_on_after(0.3) as scope:
        await streams.receive(regrant=False)
    assert scope.cancelled_caught, "output came without credit"
    await streams.frame(channel=2, credit=1 << 30)
    streams.granted[2] += 1 << 30
    await streams.read_all()
    expected = hashlib.sha256(bytes(1 << 25)).hexdigest().encode() + b"  -\n" + bytes(1 << 24)
    assert streams.output[2] == expected
    assert await guest.wait("c-bulk") == 0
    await guest.remove("c-bulk")


async def test_bulk_input_is_complete(guest: Guest) -> None:
    data = hashlib.shake_128(b"stdin").digest(8 << 20)
    await guest.create("c-in", ["sha256sum"])
    await guest.start("c-in")
    streams = guest.streams("c-in")
    await streams.attach()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, streams)
        await streams.write(data)
        await streams.frame(channel=1, eof=True)
    assert streams.output[2].split()[0].decode() == hashlib.sha256(data).hexdigest()
    await guest.remove("c-in")


async def test_input_nobody_reads_does_not_block(guest: Guest) -> None:
    await guest.create("c-deaf", ["sleep", "0.3"])
    await guest.start("c-deaf")
    streams = guest.streams("c-deaf")
    await streams.attach()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, streams)
        for _ in range(2):
            await streams.frame(channel=1, data=bytes(1 << 17))
    assert await guest.wait("c-deaf") == 0
    await guest.remove("c-deaf")


async def test_kata_stdio(guest: Guest) -> None:
    await guest.create("c-kata", ["sh", "-c", "cat; echo err >&2"])
    await guest.start("c-kata")
    write = agent_pb2.WriteStreamRequest(container_id="c-kata", data=b"abc")
    assert (await guest.agent.WriteStdin(write, timeout=LIMIT)).len == 3
    write.data = b""  # the end, as Kata's Rust runtime says it
    await guest.agent.WriteStdin(write, timeout=LIMIT)
    read = agent_pb2.ReadStreamRequest(container_id="c-kata", len=2)
    parts = []
    while data := (await guest.agent.ReadStdout(read, timeout=LIMIT)).data:
        parts.append(data)
    assert parts == [b"ab", b"c"]
    assert (await guest.agent.ReadStderr(read, timeout=LIMIT)).data == b"er"
    assert await guest.wait("c-kata") == 0
    await guest.remove("c-kata")


async def test_output_waits_for_the_next_connection(agent: AgentProcess) -> None:
    async with agent.connect() as first:
        await first.create("c-back", ["sh", "-c", "echo one; read x; echo two; read x; echo three"])
        await first.start("c-back")
        streams = first.streams("c-back")
        await streams.attach()
        await streams.until(b"one\n")
        await streams.frame(channel=1, data=b"\n")
        await streams.until(b"two\n")
    async with agent.connect() as second:
        streams = second.streams("c-back")
        await streams.attach()
        while not streams.stdin_credit:
            await streams.receive()
        await streams.frame(channel=1, data=b"\n")
        await streams.read_all()
        assert streams.output[2] == b"three\n"
        await second.remove("c-back")


async def test_a_second_attachment_takes_over(guest: Guest) -> None:
    await guest.create("c-two", ["sh", "-c", "echo one; read x; echo two"])
    await guest.start("c-two")
    first, second = guest.streams("c-two"), guest.streams("c-two")
    await first.attach()
    await first.until(b"one\n")
    await second.attach()
    with pytest.raises(TtrpcError) as caught:
        await first.read_all()
    assert caught.value.code == status.CANCELLED
    await second.frame(channel=1, data=b"\n")
    await second.read_all()
    assert second.output[2] == b"two\n"
    await guest.remove("c-two")


@pytest.mark.parametrize("where", ["init", "exec"])
@pytest.mark.parametrize(
    ("args", "text"), [(["/nope"], "nope"), (["/etc/passwd"], "ermission denied")]
)
async def test_a_binary_that_can_not_run(
    guest: Guest, where: str, args: list[str], text: str
) -> None:
    name = f"c-bad-{where}-{len(args[0])}"
    if where == "exec":
        await guest.create(name, ["sleep", "1000"])
        await guest.start(name)
    with pytest.raises(TtrpcError, match=text) as caught:
        await (guest.create(name, args) if where == "init" else guest.exec(name, "x", args))
    assert caught.value.code == status.INVALID_ARGUMENT
    if where == "exec":
        with pytest.raises(TtrpcError) as caught:
            await guest.wait(name, "x")
        assert caught.value.code == status.NOT_FOUND
        await guest.remove(name)
    else:
        assert await guest.run(name, ["true"]) == (0, b"", b"")  # nothing was left


async def test_malformed_requests(guest: Guest) -> None:
    request = agent_pb2.CreateContainerRequest(container_id="c-x", oci_spec_json=b'{"a":')
    with pytest.raises(TtrpcError, match="malformed OCI spec") as caught:
        await guest.agent.CreateContainer(request, timeout=LIMIT)
    assert caught.value.code == status.INVALID_ARGUMENT
    for name in ("", "..", "a/b", "shared", "é", "x" * 300):
        with pytest.raises(TtrpcError, match="invalid container id"):
            await guest.create(name, ["true"])
    with pytest.raises(TtrpcError) as caught:
        await guest.wait("never-made")
    assert caught.value.code == status.INVALID_ARGUMENT
    with pytest.raises(TtrpcError) as caught:
        await guest.agent.SetPolicy(agent_pb2.SetPolicyRequest(), timeout=LIMIT)
    assert caught.value.code == status.UNIMPLEMENTED


async def test_many_short_processes(guest: Guest) -> None:
    await guest.create("c-many", ["sleep", "1000"])
    await guest.start("c-many")
    codes: dict[int, int] = {}

    async def one(number: int) -> None:
        await guest.exec("c-many", f"e{number}", ["sh", "-c", f"exit {number}"])
        codes[number] = await guest.wait("c-many", f"e{number}")

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(one, number)
    assert codes == {number: number for number in range(12)}
    await guest.remove("c-many")


async def test_exec_inherits_capabilities(guest: Guest) -> None:
    own = process(["sleep", "1000"], capabilities={"bounding": ["CAP_CHOWN"]})
    await guest.create("c-caps", [], process=own)
    await guest.start("c-caps")
    await guest.agent.ExecProcess(
        agent_pb2.ExecProcessRequest(
            container_id="c-caps",
            exec_id="e",
            process={"Args": ["cat", "/proc/self/status"], "Env": ["PATH=/bin"], "Cwd": "/"},
        ),
        timeout=LIMIT,
    )
    _code, output, _ = await guest.finish("c-caps", "e")
    assert b"CapBnd:\t0000000000000001\n" in output
    await guest.remove("c-caps")
