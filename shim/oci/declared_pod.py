"""A pod that a client declared by the sandbox API, without a pause container's spec.

What its containers share is written as the spec that a pause container would have had,
so that everything behind it has one form to read; the files that containerd makes for a
pod with a pause container are written by ``shim.pod.files``.

Source: containerd internal/cri (which mounts it leaves to the sandbox), hosts(5),
resolv.conf(5).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOSTS = "/etc/hosts"
HOSTNAME = "/etc/hostname"
RESOLV_CONF = "/etc/resolv.conf"
SHM = "/dev/shm"
_HOST_FILE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class DeclaredPod:
    """A pod as declared.

    Attributes:
        spec: the OCI spec a pause container would have had.
        dns: lines of resolv.conf; empty for the host's.
    """

    spec: dict[str, Any]
    dns: tuple[str, ...] = ()

    def files(self) -> dict[str, str]:
        """The contents of the files that its containers share, by their place there."""
        dns = "".join(f"{line}\n" for line in self.dns)
        return {
            HOSTNAME: f"{self.spec.get('hostname', '')}\n",
            HOSTS: _of_host(HOSTS) or "127.0.0.1 localhost\n::1 localhost\n",
            RESOLV_CONF: dns or _of_host(RESOLV_CONF),
        }


def add_pod_mounts(spec: dict[str, Any], files: Mapping[str, str]) -> None:
    """Mount a pod's files and its /dev/shm where a container's spec has nothing else there."""
    mounts = spec.setdefault("mounts", [])
    read_only = "ro" if spec.get("root", {}).get("readonly") else "rw"
    taken = {posixpath.normpath(mount.get("destination", "")) for mount in mounts}
    for place, path in files.items():
        if place not in taken:
            options = ["rbind", "rprivate", read_only]
            mounts.append(
                {"destination": place, "type": "bind", "source": path, "options": options}
            )
    if _shares_ipc(spec):
        mounts[:] = [mount for mount in mounts if not _is_own_shm(mount)]
        if not any(posixpath.normpath(mount["destination"]) == SHM for mount in mounts):
            mounts.append({"destination": SHM, "type": "bind", "source": SHM, "options": ["rbind"]})


def _is_own_shm(mount: Mapping[str, Any]) -> bool:
    # What every container's default spec has, for one that shares it with nobody.
    place = posixpath.normpath(mount.get("destination", ""))
    return place == SHM and mount.get("type") == "tmpfs"


def _shares_ipc(spec: Mapping[str, Any]) -> bool:
    spaces = spec.get("linux", {}).get("namespaces", ())
    return any(space.get("type") == "ipc" and space.get("path") for space in spaces)


def _of_host(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_HOST_FILE_MAX)
    except OSError:
        return ""
