"""Processes that descend from the test run, however they detached themselves.

The test process is made a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): a daemon whose
parent has ended becomes our child, so walking parents in /proc finds everything that a
test started and nothing that anybody else runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    session: int
    state: str
    start_time: int
    command: str

    def __str__(self) -> str:
        # Nothing that changes while it lives, for these are compared before and after.
        ended = " (ended, not reaped)" if self.state == "Z" else ""
        return f"{self.pid}{ended} {self.command}"


def become_subreaper() -> None:
    """Make orphans of our descendants our children. Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def process(pid: int) -> Process | None:
    """Look a process up; None when there is none (source: proc_pid_stat(5))."""
    folder = Path(f"/proc/{pid}")
    try:
        stat = (folder / "stat").read_bytes()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    except OSError:
        return None
    name = stat[stat.index(b"(") + 1 : stat.rindex(b")")]
    fields = stat[stat.rindex(b")") + 2 :].split()
    text = (command or b"[" + name + b"]").decode(errors="replace")
    return Process(pid, int(fields[1]), int(fields[3]), fields[0].decode(), int(fields[19]), text)


def processes() -> Iterator[Process]:
    """All processes of the host."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := process(int(name))) is not None:
            yield found


def descendants(root: int) -> list[Process]:
    """All processes below ``root``, ordered by pid."""
    everyone = {item.pid: item for item in processes()}
    children: dict[int, list[int]] = {}
    for item in everyone.values():
        children.setdefault(item.parent, []).append(item.pid)
    found: list[Process] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        todo.extend(below)
        found.extend(everyone[pid] for pid in below)
    return sorted(found, key=lambda item: item.pid)


def reap_orphans() -> None:
    """Collect dead processes that became our children, as init would.

    Children that we started ourselves keep our session and are left to whoever waits for
    them; a daemon has a session of its own.
    """
    mine = os.getsid(0)
    for item in descendants(os.getpid()):
        if item.state == "Z" and item.parent == os.getpid() and item.session != mine:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(item.pid, os.WNOHANG)
