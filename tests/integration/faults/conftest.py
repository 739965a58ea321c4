"""A real shim whose steps can be made to fail, and what it has on the host."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.message import Message

from deploy.lib.busybox import rootfs_tar
from deploy.lib.guest import prepare_guest
from deploy.lib.runtime import prepare_runtime
from protos.containerd import task_v2_pb2
from shim.cleanup import process_table, sweeper
from shim.cleanup.ledger import Ledger, find_all, runtime_dir
from shim.launcher import render_launcher
from shim.ttrpc.client import open_client
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[3]
CALL_TIMEOUT = 120.0
SETTLE_TIMEOUT = 5.0
_DESCRIPTOR = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]


class Installation:
    """A copy of the shim whose daemon is faulty, and its bundles.

    Args:
        root: a directory with a short path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "s"
        self.runtime = prepare_runtime(root / "r", Path(sysconfig.get_path("purelib")))
        prepare_guest(Path(sys.executable), self.runtime)
        self.control = root / "fault"
        source = root / "source"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "shim", source / "shim", ignore=ignored)
        (source / "shim/daemon.py").rename(source / "shim/real_daemon.py")
        shutil.copy(Path(__file__).with_name("faulty_daemon.py"), source / "shim/daemon.py")
        for package in ("protos", "vmm"):
            (source / package).symlink_to(REPOSITORY / package)
        self.launcher = root / "containerd-shim-katapy-v2"
        python = str(Path(sys.executable).resolve())
        self.launcher.write_text(
            render_launcher(python, str(source), str(root / "pyc"), [sysconfig.get_path("purelib")])
        )
        self.launcher.chmod(0o755)

    def run(self, name: str, bundle: Path, verb: str) -> bytes:
        """Execute the shim as containerd does, and return what it printed."""
        return subprocess.run(
            [
                self.launcher,
                *("-namespace", "default", "-address", self.root / "c.sock", "-id", name),
                *("-publish-binary", "", "-bundle", bundle, verb),
            ],
            cwd=bundle,
            env={
                "PATH": os.environ["PATH"],
                **self.runtime.env,
                "KATAPY_STATE_DIR": str(self.state),
                "KATAPY_TEST_FAULT": str(self.control),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=30,
            check=True,
        ).stdout

    def start(self, name: str) -> Shim:
        """Start a shim as containerd does, for a bundle with a container in it."""
        bundle = self.root / name
        bundle.mkdir()
        volume = self.root / f"{name}-volume"
        volume.mkdir()
        with tarfile.open(fileobj=io.BytesIO(rootfs_tar())) as tar:
            tar.extractall(bundle / "rootfs")
        os.mkfifo(bundle / "log")
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        (bundle / "config.json").write_text(json.dumps(_spec(volume)))
        started = self.run(name, bundle, "start").decode()
        # It serves from then on; what came before is its own start.
        eventually(lambda: list(find_all(str(self.state))), "the shim serves", timeout=30)
        return Shim(self, name, bundle, started.removeprefix("unix://"), log)


def _spec(volume: Path) -> dict[str, Any]:
    namespaces = ("pid", "ipc", "uts", "mount", "network")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["true"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/bin"],
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/volume",
                "type": "bind",
                "source": str(volume),
                "options": ["rbind", "ro"],
            },
        ],
        "linux": {"namespaces": [{"type": kind} for kind in namespaces]},
    }


@dataclass
class Shim:
    """A serving shim."""

    installation: Installation
    name: str
    bundle: Path
    socket: str
    log_fd: int

    @property
    def pid(self) -> int:
        """The serving process."""
        ledger = Ledger.load(next(iter(find_all(str(self.installation.state)))))
        return ledger.owner[0]

    async def call(self, method: str, request: Message) -> Any:
        """Call a method of the Task service."""
        found = _DESCRIPTOR.methods_by_name[method]
        stream = await trio.open_unix_socket(self.socket)
        async with open_client(stream) as client:
            answer = await client.call(
                _DESCRIPTOR.full_name, method, request.SerializeToString(), timeout=CALL_TIMEOUT
            )
        response = getattr(task_v2_pb2, found.output_type.name, None)
        return response.FromString(answer) if response is not None else None

    async def create(self, fault: str = "", **fields: Any) -> Any:
        """Create the bundle's container; the named step fails."""
        self.installation.control.unlink(missing_ok=True)
        if fault:
            self.installation.control.write_text(fault)
        request = task_v2_pb2.CreateTaskRequest(id=self.name, bundle=str(self.bundle), **fields)
        return await self.call("Create", request)

    @property
    def struck(self) -> bool:
        """Whether the fault of the last create() has happened."""
        return not self.installation.control.exists()

    async def run_to_end(self) -> None:
        """Start the container, which ends by itself, and delete it."""
        await self.call("Start", task_v2_pb2.StartRequest(id=self.name))
        ended = await self.call("Wait", task_v2_pb2.WaitRequest(id=self.name))
        assert ended.exit_status == 0
        await self.call("Delete", task_v2_pb2.DeleteRequest(id=self.name))

    async def shut_down(self) -> None:
        """End the shim and see it gone."""
        pid = self.pid
        started = process_table.start_time(pid)
        assert started is not None
        await self.call("Shutdown", task_v2_pb2.ShutdownRequest(id=self.name))
        assert process_table.wait_for_end(pid, started, 30)

    def delete(self) -> task_v2_pb2.DeleteResponse:
        """Clean up after the shim as containerd does."""
        answer = self.installation.run(self.name, self.bundle, "delete")
        return task_v2_pb2.DeleteResponse.FromString(answer)

    @property
    def mark(self) -> str:
        """What the command lines of all of its helpers hold."""
        return runtime_dir(str(self.installation.state), "default", self.name)

    def log(self) -> str:
        """What the shim logged since the last call."""
        try:
            return os.read(self.log_fd, 1 << 16).decode()
        except BlockingIOError:
            return ""

    async def settled(self, expected: dict[str, list[str]]) -> None:
        """Wait until the shim has on the host what is expected, and nothing else."""
        # The last call's connection closes after its answer.
        with suppress(AssertionError):  # the comparison says more
            await _eventually(lambda: self.has() == expected)
        assert self.has() == expected

    async def steady(self) -> dict[str, list[str]]:
        """What the shim has on the host once that does not change any more."""
        last: dict[str, list[str]] = {}

        def same() -> bool:
            nonlocal last
            before, last = last, self.has()
            return before == last

        await _eventually(same)
        return last

    def has(self) -> dict[str, list[str]]:
        """What the shim has on the host, by kind."""
        pid = self.pid
        links = [_link(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        state = str(self.installation.state)
        ledger = Ledger.load(next(iter(find_all(state))))
        return {
            "ledger": sorted(str(entry) for entry in ledger.entries()),
            "children": sorted(f"{child} {_name(child)}" for child in _children(pid)),
            # Memory files and pipes of trio and its threads have no names of their own.
            "descriptors": sorted(link for link in links if link and not link.startswith("anon")),
            "mounts": sorted(
                line.split()[4]
                for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                if str(self.installation.root) in line
            ),
            "files": sorted(
                os.path.join(folder, name)
                for folder, folders, names in os.walk(state)
                for name in (*folders, *names)
                if os.path.join(folder, name) != f"{state}/s"  # every pod's, made once
            ),
        }


async def _eventually(look: Callable[[], bool]) -> None:
    wait = partial(eventually, look, "steady", timeout=SETTLE_TIMEOUT)
    await trio.to_thread.run_sync(wait)


def _link(path: str) -> str:
    try:
        link = os.readlink(path)
    except FileNotFoundError:
        return ""
    # Numbers differ from one connection to the next.
    return link.partition("[")[0] if link.startswith(("socket:", "pipe:")) else link


def _children(pid: int) -> list[str]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            found += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        except FileNotFoundError:
            continue
    return found


def _name(pid: str) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    name, _, rest = text.rpartition(")")
    return name.partition("(")[2] + (" zombie" if rest.split()[0] == "Z" else "")


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs QEMU")
    with tempfile.TemporaryDirectory(prefix="kf", dir="/tmp") as folder:
        yield Installation(Path(folder))


@pytest.fixture
def shim(installation: Installation, request: pytest.FixtureRequest) -> Iterator[Shim]:
    """A shim of the test's own; nothing of it may be left."""
    name = f"c{len(list(installation.root.iterdir()))}"
    shim = installation.start(name)
    yield shim
    problems: list[str] = []
    process_table.kill(process_table.find_by_marker(str(installation.launcher)), 5)
    left = list(find_all(str(installation.state)))
    sweeper.sweep_all(str(installation.state), problems.append)
    os.close(shim.log_fd)
    assert problems == []
    assert left == []
    eventually(lambda: not os.path.exists(shim.socket), "the socket goes", timeout=5)
