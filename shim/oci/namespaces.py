"""Which namespaces of the guest a container joins, by the host's paths in its spec.

A client names a pod's namespaces by the pid it was given for the pod, and another
container's by that container's. None of these processes is in a namespace of the pod's
but its network, so the paths are read as names, not opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHARED_PID = "/run/kata-containers/sandbox/ns/pid"
"""The pid namespace that containers of a pod share, in the guest."""
_PATH = re.compile(r"/proc/(\d+)/ns/(?:ipc|uts|pid)")


@dataclass(frozen=True, slots=True)
class Joined:
    """Namespaces to join.

    Attributes:
        paths: the guest's path by type.
        shared_pid: the pod's shared pid namespace is among them.
    """

    paths: Mapping[str, str]
    shared_pid: bool


def joined_namespaces(
    spec: Mapping[str, Any],
    *,
    pod_pid: int,
    containers: Mapping[int, str],
    host_pid: bool,
    in_pod: bool,
) -> Joined:
    """Translate the namespaces that a spec joins by path.

    A path that names no process of this pod means the pod's own in a pod, for clients
    differ in what they write there; a container that is alone gets a namespace of its own.

    Args:
        spec: the host's spec.
        pod_pid: the pid that stands for the pod on the host.
        containers: ids of the pod's other containers, by the pids that stand for them.
        host_pid: the pod's pid namespace is the whole VM's.
        in_pod: the container is a pod's member, not one that is alone.
    """
    paths: dict[str, str] = {}
    shared_pid = False
    for namespace in spec.get("linux", {}).get("namespaces", ()):
        kind = namespace.get("type", "")
        path = namespace.get("path", "")
        match = _PATH.fullmatch(path)
        pid = int(match[1]) if match else 0
        if not path or (not in_pod and pid != pod_pid and pid not in containers):
            continue
        if kind in ("ipc", "uts"):
            paths[kind] = f"/proc/1/ns/{kind}"
        elif kind == "pid" and pid in containers and pid != pod_pid:
            paths[kind] = f"/run/kata-containers/{containers[pid]}/pid-namespace"
        elif kind == "pid":
            paths[kind] = "/proc/1/ns/pid" if host_pid else SHARED_PID
            shared_pid = not host_pid
    return Joined(paths, shared_pid)
