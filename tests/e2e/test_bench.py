"""`katapy bench` runs to its end, has every figure, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.lib.containerd import Daemon
from deploy.lib.runtime import Runtime
from deploy.lib.work import REPOSITORY

pytestmark = [pytest.mark.root, pytest.mark.vm]

BOTH = {
    "shim_start", "shim_first_rpc", "shim_idle_rss", "shim_idle_pss", "shim_rss", "shim_pss",
    "run", "exec_ctr", "exec_rpc", "stdout", "stdin", "state_1", "state_32", "remove",
}  # fmt: skip
KATAPY_ONLY = {
    "boot_init", "boot_agent", "guest_used", "guest_used_boot", "vmm_pss", "guest_serving",
    "stage_imported", "stage_agent", "stage_created",
}  # fmt: skip


THROUGHPUT = {"share_read", "share_write", "disk_read", "disk_write", "tcp_out", "tcp_in"}


def bench(daemon: Daemon, runtime: Runtime, folder: Path, *options: str) -> dict[str, Any]:
    """Run it with its temporary files in ``folder``; the lines by their keys."""
    folder.mkdir()
    env = {**daemon.env, **runtime.env, "TMPDIR": str(folder)}
    argv = [
        sys.executable, "-m", "shim.cli.main", "bench",
        "--json", "--runs", "1", "--quick", "--timeout", "200", *options,
    ]  # fmt: skip
    done = subprocess.run(argv, env=env, cwd=REPOSITORY, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    return {line["key"]: line for line in json.loads(done.stdout)["figures"]}


def test_bench_measures_everything_and_leaves_nothing(
    daemon: Daemon, runtime: Runtime, scratch: Path
) -> None:
    folder = scratch / "b"
    figures = bench(daemon, runtime, folder, "--pods", "1", "--size", "4")
    assert set(figures) >= BOTH | KATAPY_ONLY
    for key in BOTH:
        assert figures[key]["katapy"]["median"] > 0, key
        assert figures[key]["runc"]["median"] > 0, key
        assert figures[key]["ratio"] > 0, key
    for key in KATAPY_ONLY:
        assert all(sample > 0 for sample in figures[key]["katapy"]["samples"]), key
    # A VM was there: it takes longer to its agent than the kernel takes to any init.
    assert figures["boot_agent"]["katapy"]["median"] > 0.3
    assert os.listdir(folder) == []


def test_throughput_is_measured_beside_a_bare_vm_and_leaves_nothing(
    daemon: Daemon, runtime: Runtime, scratch: Path
) -> None:
    folder = scratch / "t"
    before = netns_names()
    figures = bench(daemon, runtime, folder, "--throughput", "--size", "8")
    assert set(figures) == THROUGHPUT | {f"{key}_cpu" for key in THROUGHPUT}
    for key, line in figures.items():
        assert line["katapy"]["median"] > 0, key
        assert line["qemu"]["median"] > 0, key
        assert line["ratio"] > 0, key
    assert os.listdir(folder) == []
    assert netns_names() <= before


def netns_names() -> set[str]:
    """The namespaces that ip(8) knows."""
    folder = Path("/run/netns")
    return set(os.listdir(folder)) if folder.is_dir() else set()
