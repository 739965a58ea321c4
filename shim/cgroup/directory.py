"""One cgroup on the host: a directory in each hierarchy. Blocking, but brief.

What can't be had (a controller, a permission) is told and never an error: a pod runs
without it as well.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterable
from contextlib import suppress

from shim.cgroup.paths import Hierarchies

OVERHEAD_NAME = "katapy_overhead"
"""Parent of what is not a pod's own; it goes with the last one in it."""

_RETRIES = 8
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")

Warn = Callable[[str], None]


class CgroupDirectory:
    """A cgroup of our own.

    Args:
        hierarchies: where the host's cgroups are.
        path: from the hierarchies' roots.
        warn: told, once a matter, what is missing.
        delegated: its ancestors' controllers are ours to switch on (version 2).
    """

    def __init__(
        self, hierarchies: Hierarchies, path: str, warn: Warn, *, delegated: bool = True
    ) -> None:
        self.path = path
        self._hierarchies = hierarchies
        self._warn = warn
        self._delegated = delegated
        self._said: set[str] = set()
        self._made: list[str] = []

    @property
    def directories(self) -> list[str]:
        """The directories that were made."""
        return list(self._made)

    def make(self) -> None:
        """Make it in every hierarchy that lets us."""
        for root in self._hierarchies.roots:
            try:
                self._make_in(root)
                self._made.append(root + self.path)
            except OSError as error:
                self._say(f"{root}{self.path}: {error.strerror}")

    def add(self, pid: int) -> None:
        """Move a process into it, with all its threads."""
        self._write("cgroup.procs", pid)

    def add_threads(self, threads: Iterable[int]) -> None:
        """Move single threads into it; version 1 only."""
        for thread in threads:
            self._write("tasks", thread)

    def file(self, controller: str, name: str) -> str | None:
        """The path of one of its files, None when it has none of this name."""
        root = self._hierarchies.root(controller)
        path = f"{root}{self.path}/{name}"
        return path if root is not None and os.path.exists(path) else None

    def remove(self) -> list[str]:
        """Remove it where nothing is in it any more; returns what is left."""
        left = []
        for directory in self._made:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                left.append(directory)
            else:
                if os.path.basename(parent := os.path.dirname(directory)) == OVERHEAD_NAME:
                    with suppress(OSError):  # other pods are in it
                        os.rmdir(parent)
        self._made = left
        return left

    def _make_in(self, root: str) -> None:
        for attempt in range(_RETRIES):
            try:
                self._walk(root)
            except FileNotFoundError:
                # Somebody's end took an empty parent away.
                if attempt == _RETRIES - 1:
                    raise
            else:
                return

    def _walk(self, root: str) -> None:
        at = root
        for name in self.path.strip("/").split("/"):
            if self._hierarchies.version == 2 and self._delegated:
                self._enable_controllers(at)
            parent, at = at, posixpath.join(at, name)
            with suppress(FileExistsError):
                os.mkdir(at, 0o755)
            if self._hierarchies.version == 1 and root == self._hierarchies.root("cpuset"):
                _inherit_cpuset(parent, at)

    def _enable_controllers(self, directory: str) -> None:
        have = _read(f"{directory}/cgroup.controllers").split()
        on = _read(f"{directory}/cgroup.subtree_control").split()
        for controller in _CONTROLLERS:
            if controller in have and controller not in on:
                try:
                    _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
                except OSError as error:
                    # Its own processes stand in the way, or it is not ours.
                    self._say(f"no {controller} controller below {directory}: {error.strerror}")

    def _write(self, name: str, number: int) -> None:
        for directory in self._made:
            try:
                _write(f"{directory}/{name}", str(number))
            except OSError as error:
                if error.errno == errno.ESRCH:
                    return  # it has ended
                self._say(f"{directory}/{name} takes no process: {error.strerror}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._warn(f"host cgroup: {text}")


def _inherit_cpuset(parent: str, child: str) -> None:
    """Give an empty CPU set its parent's; version 1 takes no process without one."""
    for name in _CPUSET_FILES:
        if not _read(f"{child}/{name}").strip():
            _write(f"{child}/{name}", _read(f"{parent}/{name}").strip())


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
