"""The host cgroups that a pod's VMM and helpers run in.

With ``sandbox_cgroup_only`` everything is in a child of the pod's own cgroup, so that the
pod's limits and counters cover the whole VM. Without it only the vCPU threads are, and the
rest is in ``/katapy_overhead``.

Source: Kata's design document host-cgroups.md; Kubernetes' pod overhead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import trio

from shim.cgroup.directory import OVERHEAD_NAME, CgroupDirectory, Warn
from shim.cgroup.paths import Hierarchies, find_hierarchies, pod_path
from shim.cleanup.ledger import Entry, Ledger

# From the loss of the agent's channel to the VMM's end being known.
VMM_END_TIMEOUT_S = 5.0
_EMPTY_LOOK_S = 0.01  # version 1 tells nobody when a cgroup becomes empty


class PodCgroup:
    """Where the processes of one pod run.

    Args:
        main: for the VM: everything, or its vCPU threads.
        overhead: for the rest; None when there is no split.
        ledger: has them.
        entries: what stands for them there.
    """

    def __init__(
        self,
        main: CgroupDirectory,
        overhead: CgroupDirectory | None,
        ledger: Ledger,
        entries: list[Entry],
    ) -> None:
        self.main = main
        self.overhead = overhead
        self._ledger = ledger
        self._entries = entries
        self._pids: list[int] = []

    @property
    def splits(self) -> bool:
        """Whether vCPU threads are apart from the rest."""
        return self.overhead is not None

    @property
    def pids(self) -> list[int]:
        """The processes that were taken in one by one."""
        return list(self._pids)

    def add(self, pid: int) -> None:
        """Take in a process that has just been started."""
        self._pids.append(pid)
        (self.overhead or self.main).add(pid)

    def add_children(self) -> None:
        """Take in what the processes have started before they were in."""
        for parent in self._pids:
            for pid in _children(parent):
                (self.overhead or self.main).add(pid)

    def add_vcpus(self, threads: Iterable[int]) -> None:
        """Take in the vCPU threads; nothing to do unless they are apart."""
        if self.overhead is not None:
            self.main.add_threads(threads)

    def oom_kills(self) -> int:
        """How many processes in it the host's OOM killer has ended."""
        return sum(_oom_kills(directory) for directory in (self.main, self.overhead) if directory)

    async def ended_by_oom(self, exited: trio.Event) -> bool:
        """Whether the host's OOM killer is why the VM is gone.

        Args:
            exited: set when the VMM's end is known, soon after its loss was noticed.
        """
        with trio.move_on_after(VMM_END_TIMEOUT_S):
            await exited.wait()
        return self.oom_kills() > 0

    def oom_text(self) -> str:
        """What to say of it in the log."""
        return (
            f"the host's OOM killer struck in the pod's cgroup {self.main.path}: "
            "the pod's memory limit has to leave room for the VM (RuntimeClass overhead)"
        )

    async def remove(self) -> None:
        """Remove them once they are empty; cancelled when it takes too long."""
        for directory in (self.main, self.overhead):
            while directory is not None and directory.remove():  # noqa: ASYNC110 - no event
                await trio.sleep(_EMPTY_LOOK_S)
        for entry in self._entries:
            self._ledger.remove(entry)


def make_pod_cgroup(
    cgroups_path: str,
    sandbox_id: str,
    ledger: Ledger,
    warn: Warn,
    *,
    sandbox_cgroup_only: bool,
    hierarchies: Hierarchies | None = None,
) -> PodCgroup | None:
    """Make the cgroups of a pod.

    Args:
        cgroups_path: OCI ``linux.cgroupsPath`` of the pod's first container.
        sandbox_id: the pod's id.
        ledger: gets them before they are made.
        warn: told what can't be had.
        sandbox_cgroup_only: everything in the pod's cgroup.
        hierarchies: the host's; None to look.

    Returns:
        None when the path is empty or the host has no cgroups.

    Raises:
        InvalidArgument: the path is malformed.
    """
    pod = pod_path(cgroups_path)
    if hierarchies is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            hierarchies = find_hierarchies(file.read())
    if pod is None or not hierarchies.mounts:
        return None
    if hierarchies.version == 2 and not sandbox_cgroup_only:
        warn("host cgroup: version 2 can't split a process: sandbox_cgroup_only = true is used")
        sandbox_cgroup_only = True
    path = pod.child(f"katapy_{sandbox_id}")
    paths = [path] if sandbox_cgroup_only else [path, f"/{OVERHEAD_NAME}/{sandbox_id}"]
    entries = [ledger.add("pod_cgroup", name=name) for name in paths]
    directories = [
        CgroupDirectory(hierarchies, name, warn, delegated=not pod.systemd) for name in paths
    ]
    for directory in directories:
        directory.make()
    return PodCgroup(directories[0], directories[1] if directories[1:] else None, ledger, entries)


def _oom_kills(directory: CgroupDirectory) -> int:
    # Version 2 and version 1 name the file differently, but the line alike.
    for name in ("memory.events", "memory.oom_control"):
        path = directory.file("memory", name)
        if path is None:
            continue
        try:
            with open(path, encoding="ascii") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        return sum(int(row[1]) for row in rows if row[:1] == ["oom_kill"])
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # ended, or a kernel without the file
    return found
