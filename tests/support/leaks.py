"""What of ours exists on the host, to compare before and after a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import descendants, processes, reap_orphans
from tests.support.waiting import eventually

SHARED_DIRS = [
    Path("/run/containerd"),
    Path("/run/katapy"),
    Path("/run/kata-containers/shared/direct-volumes"),
]
"""Directories that have one place for all daemons of the host."""

_OTHERS_LINKS = "kit"
"""Links that integration tests make on the host; they may run at the same time."""

_SOCKET_PREFIXES = tuple(f"{path}/" for path in SHARED_DIRS)


@dataclass(frozen=True)
class Scope:
    """What counts as ours.

    ``token`` occurs in the name of everything that a run names; ``state_dirs`` are walked;
    ``lasting`` are paths that stay between containers; ``expected`` gives the pids of the
    harness's own long-lived processes.
    """

    token: str
    state_dirs: tuple[Path, ...]
    lasting: frozenset[str]
    expected: Callable[[], Collection[int]] = field(default=tuple)


Snapshot = dict[str, frozenset[str]]


def snapshot(scope: Scope) -> Snapshot:
    """Everything of ours by kind: each entry is a line a person can act on."""
    reap_orphans()
    return {
        "process": frozenset(_processes(scope)),
        "mount": frozenset(_mounts(scope)),
        "link": frozenset(_links()),
        "socket": frozenset(sockets(scope, Path("/proc/net/unix").read_text(errors="replace"))),
        "cgroup": frozenset(_cgroups(scope)),
        "loop device": frozenset(_loops(scope)),
        "file": frozenset(_files(scope)),
    }


def leaked(before: Snapshot, after: Snapshot) -> list[str]:
    """What is in ``after`` and was not in ``before``, one line each."""
    return [f"{kind}: {line}" for kind in after for line in sorted(after[kind] - before[kind])]


def assert_nothing_left(scope: Scope, before: Snapshot, *, timeout: float = 15.0) -> None:
    """Wait for all that came since ``before`` to vanish. Raises: AssertionError with a list.

    Params: ``timeout`` in seconds.
    """
    left: list[str] = []

    def gone() -> bool:
        left[:] = leaked(before, snapshot(scope))
        return not left

    try:
        eventually(gone, "clean-up", timeout=timeout)
    except AssertionError:
        raise AssertionError(f"left behind after {timeout:g} s:\n  " + "\n  ".join(left)) from None


def _processes(scope: Scope) -> Iterable[str]:
    expected = set(scope.expected())
    return (str(item) for item in descendants(os.getpid()) if item.pid not in expected)


def _links() -> Iterable[str]:
    return (name for name in os.listdir("/sys/class/net") if not name.startswith(_OTHERS_LINKS))


def _mounts(scope: Scope) -> Iterable[str]:
    seen = set()
    for item in processes():
        try:
            namespace = os.readlink(f"/proc/{item.pid}/ns/mnt")
            if namespace in seen:
                continue
            table = Path(f"/proc/{item.pid}/mountinfo").read_text(errors="replace")
        except OSError:
            continue  # ended meanwhile
        seen.add(namespace)
        for line in table.splitlines():
            if scope.token in line:
                yield f"{namespace} {line.split()[4]}"


def sockets(scope: Scope, table: str) -> Iterable[str]:
    """The paths of ours in what /proc/net/unix of a network namespace says."""
    # The kernel's list has other mount namespaces' sockets too, under the same paths; one
    # of ours without a file still has a process, which is told of as such.
    for line in table.splitlines()[1:]:
        path = " ".join(line.split()[7:])
        shared = path.startswith(_SOCKET_PREFIXES) and os.path.lexists(path)
        if shared or scope.token in path:
            yield path


def _cgroups(scope: Scope) -> Iterable[str]:
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            path = os.path.join(folder, name)
            if scope.token in path and name != scope.token:  # other runs have theirs
                yield path


def _loops(scope: Scope) -> Iterable[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if scope.token in backing:
            yield f"{path.parts[3]} {backing}"


def _files(scope: Scope) -> Iterable[str]:
    for top in (*SHARED_DIRS, *scope.state_dirs):
        for folder, directories, files in os.walk(top):
            for name in (*directories, *files):
                path = os.path.join(folder, name)
                if path not in scope.lasting:
                    yield path
