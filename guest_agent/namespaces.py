"""Namespaces that the containers of a sandbox share.

The first container brings them along; a bind mount keeps each alive when that
container has ended, at FOLDER/<type>, where later containers join it.
"""

from __future__ import annotations

import os

from . import libc
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = "/run/kata-containers/sandbox/ns"


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
            os.makedirs(FOLDER, exist_ok=True)
            with open(f"{FOLDER}/{kind}", "w"):
                pass
            libc.mount(own, f"{FOLDER}/{kind}", "", libc.MS_BIND)
            self._kept.append(kind)

    def release(self) -> None:
        """Let them go."""
        while self._kept:
            path = f"{FOLDER}/{self._kept.pop()}"
            try:
                libc.umount(path)
                os.unlink(path)
            except OSError as error:
                log("error", "can't release namespace", path=path, error=error)
