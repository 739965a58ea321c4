"""What a running shim loads, and how much memory it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.lib.containerd import Daemon
from deploy.lib.runtime import SHIM, Runtime
from protos.containerd import task_v2_pb2
from shim.bench.rpc import ShimClient
from shim.bench.shims import memory_of
from tests.support.ctr import Ctr
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

OURS = {"shim", "vmm", "protos"}
# trio, protobuf (google, and the C module under it), and what trio itself needs.
THIRD_PARTY = {"trio", "google", "attr", "attrs", "idna", "outcome", "sniffio", "sortedcontainers"}
# What shim/unused.py and lazy imports keep out: OpenSSL, and protobuf in pure Python.
UNLOADED = {"_hashlib", "_ssl", "asyncio", "google.protobuf.internal.decoder", "ssl"}
PSS_MAX_MIB = 23.0  # 20 idle and with a pod at the time of writing; Kata's takes 42

_DUMP = """
code = main(sys.argv[1:], {site})
if "start" in sys.argv:
    import os
    with open({target!r} + ".new", "w") as file:
        file.write("\\n".join(sys.modules))
    os.rename({target!r} + ".new", {target!r})
sys.exit(code)
"""


def test_shim_loads_trio_and_protobuf_and_nothing_else_of_others(
    ctr: Ctr, runtime: Runtime, tmp_path: Path
) -> None:
    """A launcher like the real one, which says at the end what its whole life has loaded."""
    assert runtime.launcher_dir is not None
    target = tmp_path / "modules"
    text = (runtime.launcher_dir / SHIM).read_text()
    head, _, call = text.partition("sys.exit(main(sys.argv[1:], ")
    assert call, text
    launcher = runtime.launcher_dir / SHIM.replace("katapy", "katapyseen")
    launcher.write_text(
        head + _DUMP.format(site=call.rstrip().removesuffix("))"), target=str(target))
    )
    launcher.chmod(0o755)
    seen = Ctr(ctr.daemon, ctr.namespace, runtime.name.replace("katapy", "katapyseen"))
    try:
        container = seen.start("sleep", "1000", name=ctr.new_id())
        assert ctr.exec(container, "true").code == 0
        ctr.ok("tasks", "metrics", container)
        ctr.remove(container)
    finally:
        launcher.unlink()
    eventually(target.exists, "the shim's end", timeout=20)
    loaded = set(target.read_text().split())
    assert {"trio", "shim.daemon", "shim.pod.sandbox", "protos.kata.agent_pb2"} <= loaded
    assert not loaded & UNLOADED
    roots = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert roots - OURS - THIRD_PARTY <= {"__main__"}


def test_shim_with_a_pod_stays_small(ctr: Ctr, daemon: Daemon) -> None:
    container = ctr.start("sleep", "1000")
    bundle = daemon.folder / "state/io.containerd.runtime.v2.task" / ctr.namespace / container
    with ShimClient.of_bundle(bundle) as client:
        said = client.call("Connect", task_v2_pb2.ConnectRequest(id=container))
    pid = task_v2_pb2.ConnectResponse.FromString(said).shim_pid
    assert memory_of(pid).pss < PSS_MAX_MIB
