"""Orphans are collected, and nobody's own children are: with real processes."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys, time
import trio
from shim import syscalls
from shim.cleanup.orphans import reap_orphans
from vmm.spawn import spawn

syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)

def state(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"

async def main():
    early = spawn(["/bin/sh", "-c", "sleep 0 & echo $!"])  # ends before anybody listens
    orphans = [int(early.stdout.readline())]
    early.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        await trio.testing.wait_all_tasks_blocked()
        ours = [subprocess.Popen(["/bin/sh", "-c", "exit 7"]), spawn(["/bin/sh", "-c", "exit 5"])]
        helper = spawn(["/bin/sh", "-c", "sleep 0.2 & echo $!"])
        orphans.append(int(helper.stdout.readline()))
        with trio.fail_after(20):
            while not all(state(pid) == "gone" for pid in orphans):
                await trio.sleep(0.02)
        assert [state(child.pid) for child in ours] == ["Z", "Z"]
        assert [child.wait() for child in (*ours, helper)] == [7, 5, 0]
        assert (await trio.run_process(["/bin/sh", "-c", "exit 3"], check=False)).returncode == 3
        nursery.cancel_scope.cancel()
    print("done")

import trio.testing
trio.run(main)
"""


def test_orphans_go_and_own_children_keep_their_statuses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
