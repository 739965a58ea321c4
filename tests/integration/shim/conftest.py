"""An installed shim with its real launcher, and a daemon that tells what it was given."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.cleanup import process_table, sweeper
from shim.launcher import render_launcher
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[3]
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


class Installation:
    """A copy of the shim in a directory of its own; each ``start`` makes a bundle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.grpc = str(root / "c.sock")  # makes this installation's sockets its own
        self.report = root / "report"
        self.launcher = root / "containerd-shim-katapy-v2"
        source = root / "source"
        shutil.copytree(
            REPOSITORY / "shim", source / "shim", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(Path(__file__).with_name("daemon_for_tests.py"), source / "shim/daemon.py")
        (source / "protos").symlink_to(REPOSITORY / "protos")
        self.source = source
        self.launcher.write_text(
            render_launcher(PYTHON, str(source), str(root / "pyc"), ["/third/party"])
        )
        self.launcher.chmod(0o755)
        self.extra: dict[str, str] = {}
        self.logs: dict[str, int] = {}

    def bundle(self, name: str, annotations: dict[str, str] | None = None) -> Path:
        path = self.root / "bundles" / name
        path.mkdir(parents=True, exist_ok=True)
        if name not in self.logs:  # kept open as containerd does, so that nothing is lost
            os.mkfifo(path / "log")
            self.logs[name] = os.open(path / "log", os.O_RDWR | os.O_NONBLOCK)
        (path / "config.json").write_text(json.dumps({"annotations": annotations or {}}))
        return path

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "TTRPC_ADDRESS": "/run/c.sock.ttrpc",
            "NOTIFY_SOCKET": "/run/notify",
            "GOMAXPROCS": "2",
            "XDG_RUNTIME_DIR": str(self.root),
            "KATAPY_STATE_DIR": str(self.state),
            "KATAPY_TEST_REPORT": str(self.report),
            **self.extra,
        }

    def command(self, action: str, name: str, *flags: str) -> list[str]:
        common = ["-namespace", "default", "-address", self.grpc, "-id", name]
        return [str(self.launcher), *common, "-publish-binary", "/bin/c", *flags, action]

    def start(
        self,
        name: str,
        *flags: str,
        stdin: bytes = b"",
        annotations: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        bundle = self.bundle(name, annotations)
        return subprocess.run(
            self.command("start", name, *flags),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=bundle,
            env=self.environment(),
            timeout=30,
            check=False,
        )

    def delete(self, name: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        bundle = self.bundle_path(name)
        return subprocess.run(
            self.command("delete", name, "-bundle", str(bundle), *flags),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=bundle,
            env=self.environment(),
            timeout=30,
            check=False,
        )

    def bundle_path(self, name: str) -> Path:
        return self.root / "bundles" / name

    def daemon(self) -> dict[str, Any]:
        """What the serving process reported; waits for it."""
        eventually(self.report.exists, "the daemon reports", timeout=20)
        values: dict[str, Any] = json.loads(self.report.read_text())
        self.report.unlink()
        return values

    def log(self, name: str) -> str:
        try:
            return os.read(self.logs[name], 65536).decode()
        except BlockingIOError:
            return ""


@pytest.fixture
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("i"))
    yield installation
    for fd in installation.logs.values():
        os.close(fd)
    process_table.kill(process_table.find_by_marker(str(installation.launcher)), 5)
    problems: list[str] = []
    sweeper.sweep_all(str(installation.state), problems.append)
    assert problems == []


def end(pid: int) -> None:
    """End a serving process as init would and see it gone."""
    started = process_table.start_time(pid)
    os.kill(pid, signal.SIGTERM)
    if started is not None:
        assert process_table.wait_for_end(pid, started, 10)
