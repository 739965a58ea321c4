"""What a pod's containers share, as the spec of its first one tells.

In a VM most of it is the machine's: its host name, its kernel settings, its ipc and uts
namespaces. /dev/shm is a file system of the guest, as large as the one on the host that
the spec binds.

Source: how containerd's CRI plugin writes a sandbox's spec (pause container).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shim.oci.mounts import is_bind, is_pod_shm
from shim.oci.role import Role, container_role

DEFAULT_HOSTNAME = "localhost"
DEFAULT_SHM_BYTES = 64 << 20
"""As containerd, Docker and Kata have it."""
_RESOLV_CONF_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What the containers of a pod share.

    Attributes:
        hostname: the pod's; empty leaves the guest's.
        dns: lines of the guest's own resolv.conf.
        shm_bytes: size of the pod's /dev/shm; 0 for none.
        sysctls: kernel settings by dotted name.
        host_pid: containers that share the pod's pid namespace are to see the whole
            machine, which is the VM.
    """

    hostname: str = ""
    dns: tuple[str, ...] = ()
    shm_bytes: int = 0
    sysctls: Mapping[str, str] = field(default_factory=dict)
    host_pid: bool = False


def pod_settings(spec: Mapping[str, Any]) -> PodSettings:
    """Read a pod's settings from the spec of its first container.

    A container that is alone has its sysctls and host name in namespaces of its own,
    so only a pause container's go to the machine.
    """
    pod = container_role(spec) is Role.SANDBOX
    linux = spec.get("linux", {})
    kinds = {namespace.get("type") for namespace in linux.get("namespaces", ())}
    return PodSettings(
        hostname=spec.get("hostname", ""),
        dns=_dns(_source(spec, "/etc/resolv.conf")),
        shm_bytes=_shm_bytes(_shm_source(spec), pod),
        sysctls=dict(linux.get("sysctl", {})) if pod else {},
        host_pid=pod and "pid" not in kinds,
    )


def name_own_machine(spec: dict[str, Any], settings: PodSettings) -> None:
    """Give a pod's member that has a uts namespace of its own the pod's host name in it.

    It would begin with whatever the pod's other containers have made of theirs since.
    """
    namespaces = spec.get("linux", {}).get("namespaces", ())
    own = any(entry.get("type") == "uts" and not entry.get("path") for entry in namespaces)
    if own and not spec.get("hostname"):
        spec["hostname"] = settings.hostname or DEFAULT_HOSTNAME


def _source(spec: Mapping[str, Any], destination: str) -> str:
    """The host path bound to a destination, "" for none; later mounts win."""
    found = ""
    for mount in spec.get("mounts", ()):
        if posixpath.normpath(mount.get("destination", "")) == destination:
            found = mount.get("source", "") if is_bind(mount) else ""
    return found


def _shm_source(spec: Mapping[str, Any]) -> str:
    shared = [mount["source"] for mount in spec.get("mounts", ()) if is_pod_shm(mount)]
    return shared[-1] if shared else ""


def _shm_bytes(source: str, pod: bool) -> int:
    if not source:
        return DEFAULT_SHM_BYTES if pod else 0
    try:
        info = os.statvfs(source)
    except OSError:
        return DEFAULT_SHM_BYTES
    return info.f_blocks * info.f_frsize or DEFAULT_SHM_BYTES


def _dns(source: str) -> tuple[str, ...]:
    if not source:
        return ()
    try:
        with open(source, encoding="utf-8", errors="replace") as file:
            return tuple(file.read(_RESOLV_CONF_MAX).splitlines())
    except OSError:
        return ()  # the container's own mount of it says what is wrong
