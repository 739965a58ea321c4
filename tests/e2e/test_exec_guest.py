"""``katapy exec``: a shell in the guest, and the VMM's extra monitor, for whoever debugs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.lib.runtime import Runtime
from shim.cleanup import ledger
from shim.monitoring.exposition import parse
from tests.support.ctr import Ctr
from tests.support.terminal import open_terminal

pytestmark = [pytest.mark.root, pytest.mark.vm]

SECTIONS = """
[hypervisor.qemu]
enable_debug = true
shared_fs = "virtio-fs"
extra_monitor_socket = "qmp"
[agent.kata]
debug_console_enabled = true
"""


def test_debugging_a_pod(
    ctr: Ctr, runtime: Runtime, configured: Callable[[str], tuple[str, str]]
) -> None:
    command = ["env", *(f"{key}={value}" for key, value in runtime.env.items())]
    command += [sys.executable, "-m", "shim.cli.main", "exec"]

    def katapy(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], input=stdin, capture_output=True, text=True, timeout=90, check=False
        )

    name = ctr.start("sleep", "1000", options=configured(SECTIONS))
    done = katapy(name, "--", "sh", "-c", "cat /proc/1/comm; cat; echo bad >&2; exit 5", stdin="in")
    assert done.returncode == 5
    assert done.stdout.partition("\n")[2] == "in"
    assert done.stderr == "bad\n"
    assert katapy(name, "--", "cat", "/proc/1/comm").stdout != "sleep\n", "that is the container"
    assert "sleep 1000" in katapy(name, "--", "ps", "-o", "args").stdout
    missing = katapy(name, "--", "no-such-program")
    assert missing.returncode == 1
    assert "no-such-program" in missing.stderr
    copied = katapy(name, "--", "sha256sum", stdin="x" * 3_000_000)
    assert copied.returncode == 0, copied.stderr
    expected = subprocess.run(
        ["sha256sum"], input="x" * 3_000_000, capture_output=True, text=True, check=True
    )
    assert copied.stdout == expected.stdout

    with open_terminal([*command, name], columns=91, rows=31) as terminal:
        terminal.read_until(b"#", timeout=60)
        terminal.write(b"stty size\n")
        terminal.read_until(b"31 91", timeout=60)
        terminal.resize(101, 41)
        terminal.write(b"stty size\n")
        terminal.read_until(b"41 101", timeout=60)
        terminal.write(b"exit 4\n")
        assert terminal.wait(timeout=60) == 4

    # This pod has a virtiofsd, as those with a kernel without 9p do.
    told = subprocess.run(
        [*command[:-1], "metrics", name], capture_output=True, text=True, timeout=90, check=True
    )
    seen = {s.key: s.value for family in parse(told.stdout) for s in family.samples}
    assert seen["kata_virtiofsd_threads",] >= 1
    assert seen["kata_virtiofsd_proc_status", ("item", "vmrss")] > 1 << 10

    state = runtime.env["KATAPY_STATE_DIR"]
    folder = Path(ledger.runtime_dir(state, ctr.namespace, name))
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(20)
        monitor.connect(str(folder / "extra-monitor.sock"))
        lines = monitor.makefile("rw")
        assert "QMP" in json.loads(lines.readline())
        lines.write('{"execute":"qmp_capabilities"}{"execute":"query-status"}')
        lines.flush()
        assert json.loads(lines.readline()) == {"return": {}}
        assert json.loads(lines.readline())["return"]["status"] == "running"

    plain = ctr.start("sleep", "1000")
    refused = katapy(plain, "--", "true")
    assert refused.returncode == 1
    assert "debug_console_enabled" in refused.stderr
    assert os.listdir(ledger.runtime_dir(state, ctr.namespace, plain)).count("qmp.sock") == 1
