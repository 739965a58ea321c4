"""Processes by identity: a pid means nothing without the time its process started.

Standard library only; ``delete`` uses it. A process is named by (pid, start time),
start time in clock ticks since boot as /proc gives it, so a recycled pid is never
signalled. Signals go through a pidfd that was checked after it was opened.

Source: proc_pid_stat(5) field 22; pidfd_open(2).
"""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Identity = tuple[int, int]

MARKER_VARIABLE = "KATAPY_VM"
"""As in :mod:`vmm.spawn`, which is slow to import."""

_DEAD_STATES = ("Z", "X", "x")


def start_time(pid: int) -> int | None:
    """The start time of a running process in clock ticks since boot.

    Returns:
        None when there is no such process, or only its zombie.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold spaces and ")"
    return None if fields[0] in _DEAD_STATES else int(fields[19])


def own_identity() -> Identity:
    """The identity of the calling process."""
    pid = os.getpid()
    started = start_time(pid)
    if started is None:
        raise ProcessLookupError(f"/proc shows no process {pid}; is /proc of this pid namespace?")
    return pid, started


def is_alive(pid: int, started: int) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    return pid > 0 and start_time(pid) == started


def open_pidfd(pid: int, started: int) -> int | None:
    """Open a pidfd of this very process; the caller closes it.

    Returns:
        None when it has ended.
    """
    if pid <= 0:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) == started:
        return fd
    os.close(fd)
    return None


def wait_for_end(pid: int, started: int, timeout: float) -> bool:
    """Wait up to ``timeout`` seconds for a process to end; says whether it has."""
    fd = open_pidfd(pid, started)
    if fd is None:
        return True
    try:
        return not _wait([fd], timeout)
    finally:
        os.close(fd)


def kill(identities: Iterable[Identity], timeout: float) -> list[Identity]:
    """SIGKILL processes, all at once, and wait for their ends.

    Args:
        identities: (pid, start time) of each.
        timeout: seconds to wait for all of them together.

    Returns:
        Those that still ran when the time was over.
    """
    fds: dict[int, Identity] = {}
    try:
        for pid, started in identities:
            fd = open_pidfd(pid, started)
            if fd is not None:
                fds[fd] = (pid, started)
        for fd in fds:
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return [fds[fd] for fd in _wait(list(fds), timeout)]
    finally:
        for fd in fds:
            os.close(fd)


def _wait(fds: list[int], timeout: float) -> list[int]:
    """Wait until the pidfds' processes end; gives those that have not."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    left = set(fds)
    while left:
        remaining = deadline - time.monotonic()
        ended = poll.poll(max(0, int(remaining * 1000) + 1)) if remaining > 0 else poll.poll(0)
        for fd, _ in ended:
            poll.unregister(fd)
            left.discard(fd)
        if not ended and remaining <= 0:
            break
    return [fd for fd in fds if fd in left]


def find_by_marker(marker: str) -> list[Identity]:
    """Find the processes with ``marker`` in the command line or as marker in the environment.

    For a process that was announced but whose pid was never recorded, because the
    shim died in between. The marker must be unique, such as its socket directory.
    """
    needle = os.fsencode(marker)
    variable = MARKER_VARIABLE.encode() + b"=" + needle
    found = []
    own = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                found_it = needle in file.read()
            if not found_it:
                with open(f"/proc/{name}/environ", "rb") as file:
                    found_it = variable in file.read().split(b"\0")
        except OSError:
            continue
        if found_it:
            started = start_time(int(name))
            if started is not None:
                found.append((int(name), started))
    return found
