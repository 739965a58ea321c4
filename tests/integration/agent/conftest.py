"""The agent on the host, in namespaces of its own, driven through its ttrpc socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from protos.kata import agent_pb2, health_pb2
from protos.katapy import extension_pb2
from shim.ttrpc.client import Client, open_client
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError

pytestmark = pytest.mark.root
APPLETS = ("sh", "cat", "echo", "sleep", "true", "id", "head", "dd", "sha256sum", "stty", "ls")
LIMIT = 30.0


def busybox_root(folder: Path) -> Path:
    """A container root file system with busybox, read-only use only."""
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for applet in APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    return folder


def oci_spec(
    rootfs: str, args: list[str], *, terminal: bool = False, **extra: Any
) -> dict[str, Any]:
    """A small OCI configuration."""
    return {
        "ociVersion": "1.0.2",
        "process": process(args, terminal=terminal),
        "root": {"path": rootfs},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        **extra,
    }


def process(args: list[str], *, terminal: bool = False, **extra: Any) -> dict[str, Any]:
    """An OCI process."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        **extra,
    }


class Streams:
    """The client's end of a Stdio stream that grants all credit it is asked for."""

    def __init__(self, client: Client, container_id: str, exec_id: str, window: int) -> None:
        self._stream = client.stream("katapy.agent.v1.Extension", "Stdio")
        self._first = extension_pb2.StdioFrame(
            container_id=container_id, exec_id=exec_id, credit=window
        )
        self.output = {2: bytearray(), 3: bytearray()}
        self.ended = {2: False, 3: False}
        self.granted = {2: window, 3: window}
        self.stdin_credit = 0
        self.changed = trio.Condition()

    async def attach(self) -> None:
        """Name the process."""
        await self._stream.send(self._first.SerializeToString())

    async def frame(self, **fields: Any) -> None:
        """Send one frame."""
        await self._stream.send(extension_pb2.StdioFrame(**fields).SerializeToString())

    async def receive(self, *, regrant: bool = True) -> bool:
        """Take in one frame; False at the end of the stream."""
        data = await self._stream.receive()
        if data is None:
            return False
        frame = extension_pb2.StdioFrame.FromString(data)
        if frame.channel == 1:
            self.stdin_credit += frame.credit
        else:
            assert not self.ended[frame.channel]
            self.output[frame.channel] += frame.data
            self.ended[frame.channel] = frame.eof
            self.granted[frame.channel] -= len(frame.data)
            assert self.granted[frame.channel] >= 0, "more was sent than credit was given"
            if regrant and frame.data:
                self.granted[frame.channel] += len(frame.data)
                with suppress(TtrpcError):  # the agent may have ended the stream meanwhile
                    await self.frame(channel=frame.channel, credit=len(frame.data))
        async with self.changed:
            self.changed.notify_all()
        return True

    async def read_all(self) -> None:
        """Receive until the agent ends the stream."""
        while await self.receive():
            pass
        assert self.ended[2]

    async def until(self, text: bytes, channel: int = 2) -> None:
        """Receive until a channel's output contains a text."""
        while text not in self.output[channel]:
            assert await self.receive(), f"{text!r} never came, only {self.output}"

    async def write(self, data: bytes) -> None:
        """Send standard input as credit allows; something else must receive meanwhile."""
        view = memoryview(data)
        while view:
            async with self.changed:
                while not self.stdin_credit:
                    await self.changed.wait()
            size = min(len(view), self.stdin_credit, 1 << 18)
            self.stdin_credit -= size
            await self.frame(channel=1, data=bytes(view[:size]))
            view = view[size:]


class Guest:
    """Calls to one agent over one connection."""

    def __init__(self, client: Client, rootfs: str) -> None:
        self.client = client
        self.rootfs = rootfs
        self.agent: Any = stub(client, agent_pb2.DESCRIPTOR.services_by_name["AgentService"])
        self.health: Any = stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
        self.extension: Any = stub(client, extension_pb2.DESCRIPTOR.services_by_name["Extension"])

    async def create(self, container_id: str, args: list[str], **spec: Any) -> None:
        """Create a container from an OCI configuration."""
        config = json.dumps(oci_spec(self.rootfs, args, **spec)).encode()
        await self.agent.CreateContainer(
            agent_pb2.CreateContainerRequest(container_id=container_id, oci_spec_json=config),
            timeout=LIMIT,
        )

    async def start(self, container_id: str) -> None:
        """Start it."""
        request = agent_pb2.StartContainerRequest(container_id=container_id)
        await self.agent.StartContainer(request, timeout=LIMIT)

    async def exec(self, container_id: str, exec_id: str, args: list[str], **extra: Any) -> None:
        """Add a process to it."""
        await self.agent.ExecProcess(
            agent_pb2.ExecProcessRequest(
                container_id=container_id,
                exec_id=exec_id,
                oci_process_json=json.dumps(process(args, **extra)).encode(),
            ),
            timeout=LIMIT,
        )

    async def wait(self, container_id: str, exec_id: str = "") -> int:
        """Wait for an exit code."""
        request = agent_pb2.WaitProcessRequest(container_id=container_id, exec_id=exec_id)
        return int((await self.agent.WaitProcess(request, timeout=LIMIT)).status)

    async def signal(self, container_id: str, number: int, exec_id: str = "") -> None:
        """Send a signal."""
        await self.agent.SignalProcess(
            agent_pb2.SignalProcessRequest(
                container_id=container_id, exec_id=exec_id, signal=number
            ),
            timeout=LIMIT,
        )

    async def remove(self, container_id: str) -> None:
        """Remove the container."""
        request = agent_pb2.RemoveContainerRequest(container_id=container_id)
        await self.agent.RemoveContainer(request, timeout=LIMIT)

    def streams(self, container_id: str, exec_id: str = "", window: int = 1 << 20) -> Streams:
        """Streams of a process, to be attached."""
        return Streams(self.client, container_id, exec_id, window)

    async def finish(self, container_id: str, exec_id: str = "") -> tuple[int, bytes, bytes]:
        """Read all output of a process and wait for it: code, stdout, stderr."""
        streams = self.streams(container_id, exec_id)
        await streams.attach()
        await streams.read_all()
        code = await self.wait(container_id, exec_id)
        return code, bytes(streams.output[2]), bytes(streams.output[3])

    async def run(
        self, container_id: str, args: list[str], **spec: Any
    ) -> tuple[int, bytes, bytes]:
        """Create, start, read, wait, remove."""
        await self.create(container_id, args, **spec)
        await self.start(container_id)
        result = await self.finish(container_id)
        await self.remove(container_id)
        return result


class AgentProcess:
    """A running agent: its socket, its root, its pid on the host."""

    def __init__(
        self, root: Path, socket: str, rootfs: str, popen: subprocess.Popen[bytes]
    ) -> None:
        self.root = root
        self.socket = socket
        self.rootfs = rootfs
        self.popen = popen

    @property
    def pid(self) -> int:
        """The agent's pid on the host."""
        children = f"/proc/{self.popen.pid}/task/{self.popen.pid}/children"
        return int(Path(children).read_text())

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Guest]:
        """One more connection."""
        with trio.fail_after(LIMIT):
            stream = await self._dial()
        async with open_client(stream) as client:
            yield Guest(client, self.rootfs)

    async def _dial(self) -> trio.SocketStream:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.connect(self.socket)
        return trio.SocketStream(sock)


@contextmanager
def run_agent(base: Path, *options: str) -> Iterator[AgentProcess]:
    """An agent, with further options of its command line."""
    if os.geteuid() or not shutil.which("crun") or not Path("/bin/busybox").exists():
        pytest.skip("needs root, crun and busybox")
    rootfs = busybox_root(base / "rootfs")
    root, path = base / "root", base / "a.sock"
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
    command += [sys.executable, "-m", "guest_agent", "--listen", f"unix://{path}"]
    command += ["--root", str(root), *options]
    popen = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[3],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert popen.stdout is not None
    try:
        assert popen.stdout.readline() == b"ready\n", "the agent did not start"
        yield AgentProcess(root, str(path), str(rootfs), popen)
    finally:
        popen.kill()  # unshare takes the agent, and with it its whole pid namespace, along
        popen.wait(10)
        popen.stdout.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """One agent for the tests of a module."""
    with run_agent(tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture
async def guest(agent: AgentProcess) -> AsyncIterator[Guest]:
    """A connection to the agent."""
    async with agent.connect() as connected:
        yield connected
