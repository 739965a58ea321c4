"""Finding the shim of a pod that runs on this host.

A shim listens on its descriptor 3, so the kernel knows where: proc(5), ``net/unix``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from shim.errors import NotFound
from shim.monitoring.pods import RunningPod, running_pods

LISTENER_FD = 3


def socket_of(sandbox_id: str, state_dir: str = "") -> str:
    """Return the path of the socket that a pod's shim listens on.

    Args:
        sandbox_id: the pod's id, in whatever namespace of containerd's.
        state_dir: directory of the ledgers; "" for the one in effect.

    Raises:
        NotFound: no such pod runs here.
    """
    for pod in _named(sandbox_id, state_dir):
        if found := listening_on(pod.pid):
            return found
    raise NotFound(f"no pod {sandbox_id!r} runs on this host")


def sockets(state_dir: str = "") -> Iterator[tuple[str, str]]:
    """Id and socket path of each pod that runs here. ``state_dir`` as of :func:`socket_of`."""
    for pod in running_pods(state_dir):
        if found := listening_on(pod.pid):
            yield pod.sandbox_id, found


def management_of(sandbox_id: str, state_dir: str = "") -> str:
    """Return the path of a pod's management socket; arguments and errors as above."""
    for pod in _named(sandbox_id, state_dir):
        return pod.management
    raise NotFound(f"no pod {sandbox_id!r} runs on this host")


def _named(sandbox_id: str, state_dir: str) -> list[RunningPod]:
    return [pod for pod in running_pods(state_dir) if pod.sandbox_id == sandbox_id]


def listening_on(pid: int) -> str:
    """Path of the unix socket that a shim's process listens on, "" for none."""
    try:
        link = os.readlink(f"/proc/{pid}/fd/{LISTENER_FD}")
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    inode = link.removeprefix("socket:[").removesuffix("]")
    for line in lines:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[6] == inode:
            return words[7]
    return ""
