"""Stand-ins (or the real programs, where the environment names them) and their clients."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests_unixsocket

from tests.integration.vmm import guest
from tests.standins.install import Program, provide
from tests.support import versions
from tests.support.processes import descendants
from tests.support.waiting import eventually
from vmm.kernel import extract_vmlinux

BOOT = 120.0
"""Seconds a guest may take to come up on a busy machine."""

# The guest's serial port runs lines, and prints what they say between two marks.
_INIT = r"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
stty -F /dev/ttyS0 -echo raw
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
echo "guest is up"
while read -r line; do eval "$line"; echo "--end"; done
sleep 1000000
"""


@dataclass
class Guest:
    """Kernel and initrd of a guest with a shell on its serial port."""

    kernel: Path
    initrd: Path


@pytest.fixture(scope="session")
def shell_guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    files = guest.build()
    directory = tmp_path_factory.mktemp("guest")
    (directory / "init").write_text(_INIT)
    (directory / "init").chmod(0o755)
    extra = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        input=b"init\n",
        cwd=directory,
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    initrd = directory / "initrd"
    initrd.write_bytes(files.initrd.read_bytes() + extra)
    # Firecracker before 1.17 starts no bzImage.
    kernel = directory / "vmlinux"
    kernel.write_bytes(extract_vmlinux(files.kernel.read_bytes()))
    return Guest(kernel, initrd)


@dataclass
class Vmm:
    """A running VMM.

    Args:
        program: what runs.
        process: its process.
        socket: of its API.
        directory: for the test's files.
        prefix: of the API's paths.
    """

    program: Program
    process: subprocess.Popen[bytes]
    socket: Path
    directory: Path
    prefix: str = ""
    output: bytearray = field(default_factory=bytearray)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request by an independent client; a new connection each time."""
        url = f"http+unix://{str(self.socket).replace('/', '%2F')}{self.prefix}{path}"
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        with requests_unixsocket.Session() as session:
            return session.request(method, url, data=data, timeout=60)

    def put(self, path: str, body: Any = None, *, status: int = 204) -> Any:
        """Send a PUT that must be answered with this status."""
        return self._expect("PUT", path, body, status)

    def patch(self, path: str, body: Any, *, status: int = 204) -> Any:
        """Send a PATCH that must be answered with this status."""
        return self._expect("PATCH", path, body, status)

    def get(self, path: str) -> Any:
        """Return the answer to a GET."""
        return self._expect("GET", path, None, 200)

    def _expect(self, method: str, path: str, body: Any, status: int) -> Any:
        answer = self.request(method, path, body)
        assert answer.status_code == status, f"{method} {path}: {answer.text}"
        if status == 204:
            assert "Content-Length" not in answer.headers
        return answer.json() if answer.content and status < 400 else answer

    def wait_output(self, text: bytes, timeout: float = BOOT) -> bytes:
        """Read the VMM's standard output until a text has come; returns all since the last."""

        def look() -> bool:
            self._read()
            return text in self.output

        eventually(look, f"{text!r} on the console", timeout=timeout)
        end = self.output.index(text) + len(text)
        found = bytes(self.output[:end])
        del self.output[:end]
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        os.set_blocking(fd, False)
        try:
            while data := os.read(fd, 65536):
                self.output += data
        except BlockingIOError:
            return

    def shell(self, command: str) -> str:
        """Run a line in the guest."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        text = self.wait_output(b"--end", 60).decode(errors="replace")
        return text.removesuffix("--end").replace("\r", "").strip()

    def shell_until(self, command: str, check: Callable[[str], bool], timeout: float = 30) -> str:
        """Run a line in the guest until what it prints is right."""
        found = ""

        def look() -> bool:
            nonlocal found
            found = self.shell(command)
            return check(found)

        eventually(look, f"{command}: {found}", timeout=timeout)
        return found

    def connect(self, uds: Path, port: int) -> bytes:
        """Return the first line of the hybrid vsock handshake; empty when refused."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2)
            try:
                sock.connect(str(uds))
                sock.sendall(b"CONNECT %d\n" % port)
                return sock.recv(32)
            except OSError:
                return b""


class Start:
    """Starts VMMs and ends them with the test."""

    def __init__(self, daemon: Path) -> None:
        self._daemon = daemon
        self._directories: list[Path] = []
        self._started: list[Vmm] = []

    def directory(self) -> Path:
        """Return a directory with a short path."""
        directory = Path(tempfile.mkdtemp(prefix="vmm-", dir="/tmp"))
        directory.chmod(0o755)
        self._directories.append(directory)
        return directory

    def program(self, name: str, directory: Path, version: str = "") -> Program:
        """Return the real program, or the stand-in of a version."""
        return provide(name, directory / "bin", self._daemon, version)

    def vmm(
        self, name: str, version: str, *options: str, stdin: bool = True, fds: tuple[int, ...] = ()
    ) -> Vmm:
        """Start ``firecracker`` or ``cloud-hypervisor``."""
        directory = self.directory()
        program = self.program(name, directory, version)
        path = directory / "api.sock"
        flag = "--api-sock" if name == "firecracker" else "--api-socket"
        (directory / "log").touch()
        log = "--log-path" if name == "firecracker" else "--log-file"
        process = subprocess.Popen(
            [program.path, flag, path, log, directory / "log", *options],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=fds,
        )
        prefix = "" if name == "firecracker" else "/api/v1"
        vmm = Vmm(program, process, path, directory, prefix)
        self._started.append(vmm)
        eventually(
            lambda: path.exists() or process.poll() is not None, f"{path} is there", timeout=20
        )
        assert process.poll() is None
        return vmm

    def finish(self) -> None:
        """End everything, and see that nothing is left."""
        for vmm in self._started:
            children = [child.pid for child in descendants(vmm.process.pid)]
            vmm.process.kill()
            vmm.process.wait(10)
            for pipe in (vmm.process.stdin, vmm.process.stdout):
                if pipe is not None:
                    pipe.close()
            _until_ended(children)
        for directory in self._directories:
            shutil.rmtree(directory)


def _until_ended(pids: list[int]) -> None:
    what = "QEMU and daemons end with a killed VMM"
    eventually(lambda: not any(_alive(pid) for pid in pids), what, timeout=10)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(vhost_device_vsock: Path) -> Iterator[Start]:
    starter = Start(vhost_device_vsock)
    try:
        yield starter
    finally:
        starter.finish()


@pytest.fixture(autouse=True, scope="session")
def _say_which() -> None:
    for name in ("firecracker", "jailer", "cloud-hypervisor"):
        real = os.environ.get(f"KATAPY_{name.replace('-', '_').upper()}")
        versions.used[name] = real or "stand-in"
