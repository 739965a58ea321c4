"""Figures of real processes, beside what the kernel and the standard library say of them."""

from __future__ import annotations

import os
import resource
import subprocess
import time

import pytest

from shim.monitoring.exposition import Family, render
from shim.monitoring.processes import (
    cost,
    link_family,
    process_families,
    serving,
    standard_families,
)


def values(families: list[Family]) -> dict[tuple[str, str], float]:
    return {(s.name, dict(s.labels).get("item", "")): s.value for f in families for s in f.samples}


def test_our_own() -> None:
    found = values(process_families("p", "us", os.getpid()) + standard_families("p", os.getpid()))
    assert abs(found["p_threads", ""] - len(os.listdir("/proc/self/task"))) < 8
    assert abs(found["p_fds", ""] - len(os.listdir("/proc/self/fd"))) <= 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = found["p_process_cpu_seconds_total", ""]
    assert abs(seconds - usage.ru_utime - usage.ru_stime) < 0.5
    ticks = found["p_proc_stat", "utime"] + found["p_proc_stat", "stime"]
    assert ticks == pytest.approx(seconds * os.sysconf("SC_CLK_TCK"))
    # The kernel sums these up from time to time.
    resident = found["p_process_resident_memory_bytes", ""]
    assert abs(found["p_proc_status", "vmrss"] * 1024 - resident) < 8 << 20
    assert abs(found["p_proc_status", "vmhwm"] - usage.ru_maxrss) < 8 << 10
    assert found["p_io_stat", "rchar"] > 0
    assert found["p_process_max_fds", ""] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < time.time() - found["p_process_start_time_seconds", ""] < 86400


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert render(process_families("p", "it", gone.pid)) == ""
    assert standard_families("p", gone.pid) == []
    assert cost([gone.pid]) == (0, 0)
    assert serving(gone.pid) == gone.pid


def test_links() -> None:
    family = link_family("links", "", os.getpid())
    names = {dict(s.labels)["interface"] for s in family.samples}
    assert names == set(os.listdir("/sys/class/net"))
    assert {dict(s.labels)["item"] for s in family.samples} >= {"recv_bytes", "sent_packets"}


def test_shared_pages_count_once() -> None:
    seconds, memory = cost([os.getpid()])
    assert seconds > 0
    resident = values(standard_families("p", os.getpid()))["p_process_resident_memory_bytes", ""]
    assert 0 < memory <= resident * 1.1


def test_the_child_that_does_the_work() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 100 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert serving(parent.pid) == child
        assert serving(child) == child
        os.kill(child, 9)
