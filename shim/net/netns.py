"""The network namespace a pod's VMM runs in.

Namespaces belong to threads, so one is made in a thread of its own that ends with
it; the returned descriptor keeps it alive until the VMM is in it.

Source: namespaces(7), setns(2), OCI runtime-spec ``linux.namespaces``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from typing import Any

from shim import syscalls
from shim.errors import Internal, InvalidArgument
from shim.net.netlink import netns_id

_NS_GET_NSTYPE = 0xB703


def open_netns(spec: dict[str, Any]) -> int | None:
    """Open the network namespace an OCI spec asks for.

    Args:
        spec: the OCI configuration of the pod's first container.

    Returns:
        A descriptor the caller closes: of the namespace at the spec's path, or of a
        new one when the spec names no path; None when the pod uses the host's network.

    Raises:
        InvalidArgument: the path is not a network namespace.
        Internal: the kernel refused a new one.
    """
    wanted = _entry(spec)
    if wanted is None:
        return None
    path = wanted.get("path")
    return open_netns_at(str(path)) if path else new_netns()


def open_netns_at(path: str) -> int:
    """Open the network namespace at a path and return a descriptor, which the caller closes.

    Raises:
        InvalidArgument: there is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise InvalidArgument(f"network namespace {path}: {err.strerror}") from err
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != syscalls.CLONE_NEWNET:
        os.close(fd)
        raise InvalidArgument(f"network namespace {path}: it is no network namespace")
    return fd


def netns_path(spec: dict[str, Any]) -> str:
    """Return the path of the namespace that a spec names, "" when it names none."""
    wanted = _entry(spec)
    return str(wanted.get("path") or "") if wanted else ""


def is_hosts(netns: int) -> bool:
    """Whether an open network namespace is the one this process is in, the host's."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns_id(own) == netns_id(netns)
    finally:
        os.close(own)


def _entry(spec: dict[str, Any]) -> dict[str, Any] | None:
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    return next((entry for entry in namespaces if entry.get("type") == "network"), None)


def new_netns() -> int:
    """Make a network namespace and return a descriptor of it, which the caller closes.

    Raises:
        Internal: the kernel refuses.
    """
    made: list[int] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as err:
            failed.append(err)

    thread = threading.Thread(target=make, name="new-netns")
    thread.start()
    thread.join()
    if failed:
        raise Internal(f"cannot make a network namespace: {failed[0].strerror}") from failed[0]
    return made[0]
