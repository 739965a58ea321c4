"""Collects processes whose parents died: the shim is a subreaper, so they end as its own.

A helper that is killed leaves children of its own; their zombies would stay until the
shim's end. What the shim started itself is waited for by whoever started it, so nothing
may be taken from there: such a child is in the shim's session or leads one of its own,
and one that is neither came from elsewhere.

Source: prctl(2) PR_SET_CHILD_SUBREAPER; proc_pid_stat(5) fields 3 and 6.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import trio


async def reap_orphans() -> None:
    """Collect orphans for ever; run it in a nursery."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        reap_now()  # those that ended before anybody listened
        async for _ in signals:
            reap_now()


def reap_now() -> list[int]:
    """Collect the orphans that have ended; their pids."""
    own_session = os.getsid(0)
    reaped = []
    for pid in _children():
        state, session = _state(pid)
        if state == "Z" and session not in (pid, own_session):
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
                reaped.append(pid)
    return reaped


def _children() -> Iterator[int]:
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # a thread that ended, or a kernel without such a file
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                children = file.read()
            yield from map(int, children.split())


def _state(pid: int) -> tuple[str, int]:
    """A process's state and session, ("", 0) when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold spaces and ")"
    return fields[0], int(fields[3])
