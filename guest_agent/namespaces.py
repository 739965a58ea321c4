"""Namespaces that the containers of a sandbox share.

For a shim of Kata's the first container brings them along; a bind mount keeps each alive
when that container has ended, at FOLDER/<type>, where later containers join it.

Our shim has no first container: ipc and uts are the machine's own, which nobody else is
on, and a pid namespace is made when a container asks to share one. Its first process
holds it open and collects what is orphaned in it, as a pause container does.

Source: pid_namespaces(7), setns(2); SIGCHLD ignored means no zombies, sigaction(2).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from . import libc
from .children import find_program
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = "/run/kata-containers/sandbox/ns"
HOLDER = "pause"
"""The name of a shared pid namespace's first process, as in a pod without a VM."""


class SharedNamespaces:
    """The namespaces kept so far."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[str] = []

    def join(self, spec: dict[str, Any], *, pid: bool) -> None:
        """Have a configuration join the kept ones where it names no other.

        Args:
            spec: the OCI configuration.
            pid: whether the pid namespace is shared as well.
        """
        for namespace in (spec.get("linux") or {}).get("namespaces") or ():
            kind = namespace.get("type")
            if kind in self._kept and not namespace.get("path") and (pid or kind != "pid"):
                namespace["path"] = f"{FOLDER}/{kind}"

    def keep(self, init: int, *, pid: bool) -> None:
        """Keep the namespaces of a container's init, as far as they are its own.

        Raises:
            OSError: one can't be kept.
        """
        for kind in ("ipc", "uts", "pid"):
            own = f"/proc/{init}/ns/{kind}"
            if kind in self._kept or (kind == "pid" and not pid):
                continue
            if os.readlink(own) == os.readlink(f"/proc/self/ns/{kind}"):
                continue
            self._keep(init, kind)

    def _keep(self, process: int, kind: str) -> None:
        os.makedirs(FOLDER, exist_ok=True)
        with open(f"{FOLDER}/{kind}", "w"):
            pass
        libc.mount(f"/proc/{process}/ns/{kind}", f"{FOLDER}/{kind}", "", libc.MS_BIND)
        self._kept.append(kind)

    def share_pid(self) -> None:
        """Have a pid namespace at FOLDER/pid, with a first process in it.

        Raises:
            OSError: it can't be made.
        """
        if "pid" in self._kept:
            return
        program = _named_program()
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.unshare(libc.CLONE_NEWPID)  # of children to come, not of this process
            try:
                holder = os.fork()
                if not holder:
                    _hold(program)
            finally:
                libc.setns(own, libc.CLONE_NEWPID)
        finally:
            os.close(own)
        self._keep(holder, "pid")

    def release(self) -> None:
        """Let them go."""
        while self._kept:
            path = f"{FOLDER}/{self._kept.pop()}"
            try:
                libc.umount(path)
                os.unlink(path)
            except OSError as error:
                log("error", "can't release namespace", path=path, error=error)


def _named_program() -> str:
    """A program that can sleep, by a path that gives its process a name of its own.

    What a container's processes look for by name (pgrep(1), pidof(8)) is never this one: a
    process is called by the last part of the path it was executed by, execve(2).
    """
    os.makedirs(FOLDER, exist_ok=True)
    path = f"{FOLDER}/{HOLDER}"
    if not os.path.islink(path):
        os.symlink(find_program("busybox"), path)
    return path


def _hold(program: str) -> None:
    """Become the first process of a pid namespace; never returns."""
    try:
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.setsid()
        os.execv(program, ["busybox", "sleep", "2147483647"])
    finally:
        os._exit(127)
