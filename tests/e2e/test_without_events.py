"""A shim that was started as CRI-O starts it: nobody takes its events."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from deploy.lib.runtime import SHIM, Runtime
from protos.containerd import task_v2_pb2 as task
from shim.ttrpc.client import open_client
from shim.ttrpc.service import stub

pytestmark = [pytest.mark.root, pytest.mark.vm]

LIMIT_S = 120.0
SPEC = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["tail", "/dev/zero"],  # keeps its last line, which has no end
        "env": ["PATH=/bin"],
        "cwd": "/",
    },
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {
        "resources": {"memory": {"limit": 32 << 20}},
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
    },
}


async def run(address: str, container: str, bundle: Path) -> int:
    """Create, start, await, delete and shut down; give the exit code."""
    with trio.fail_after(LIMIT_S):
        async with open_client(await trio.open_unix_socket(address)) as client:
            shim: Any = stub(client, task.DESCRIPTOR.services_by_name["Task"])
            await shim.Create(task.CreateTaskRequest(id=container, bundle=str(bundle)))
            await shim.Start(task.StartRequest(id=container))
            ended = await shim.Wait(task.WaitRequest(id=container))
            await shim.Delete(task.DeleteRequest(id=container))
            await shim.Shutdown(task.ShutdownRequest(id=container))
            return int(ended.exit_status)


def test_events_are_logged_and_an_oom_leaves_a_file(
    leak_check: None, runtime: Runtime, plain_rootfs: Path, tmp_path: Path, token: str
) -> None:
    container = f"{token}-crio"
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps({**SPEC, "root": {"path": str(plain_rootfs)}}))
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    assert runtime.launcher_dir is not None
    program = runtime.launcher_dir / SHIM
    words = ["-namespace", token, "-id", container, "-address", "", "-publish-binary", "/bin/crio"]

    def shim(action: str) -> str:
        return subprocess.run(
            [program, *words, action],
            cwd=bundle,
            env={"PATH": os.environ["PATH"], **runtime.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout.decode(errors="replace")

    try:
        address = shim("start").strip().removeprefix("unix://")
        assert trio.run(run, address, container, bundle) == 137
        said = os.read(log, 1 << 20).decode()
    finally:
        shim("delete")
        os.close(log)
    assert (bundle / "oom").read_bytes() == b""
    topics = [
        line.partition("topic=")[2].split()[0] for line in said.splitlines() if "topic=" in line
    ]
    assert topics == [f"/tasks/{name}" for name in ("create", "start", "oom", "exit", "delete")]
    assert "event dropped" not in said
