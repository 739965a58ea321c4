"""Volumes that the agent makes or mounts: their paths in the guest and its storages.

Source: Kata's Storage vocabulary (drivers ``ephemeral``, ``local``, ``blk``).
"""

from __future__ import annotations

import posixpath
import re

from protos.kata import agent_pb2
from shim.sockets import sha256_hex
from shim.storage.direct_volume import DirectVolume
from shim.storage.disks import agent_driver
from shim.storage.volumes import GuestDirectory, MemoryVolume

GUEST_SANDBOX = "/run/kata-containers/sandbox"

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")

Mounted = tuple[str, tuple[agent_pb2.Storage, ...]]
"""A path in the guest and the storages that have to be there for it."""


def guest_name(path: str) -> str:
    """A path element that stands for a host path, telling and unique."""
    base = _UNSAFE.sub("_", posixpath.basename(path))[:40]
    return f"{sha256_hex(path.encode('utf-8', 'surrogateescape'))[:16]}-{base}"


def memory_volume(plan: MemoryVolume) -> Mounted:
    """A tmpfs or hugetlbfs, and the directory in it that is meant."""
    point = f"{GUEST_SANDBOX}/ephemeral/{guest_name(plan.key)}"
    storages = [
        agent_pb2.Storage(
            driver="ephemeral",
            source="tmpfs" if plan.fstype == "tmpfs" else "nodev",
            fstype=plan.fstype,
            options=plan.options,
            mount_point=point,
            shared=True,
        )
    ]
    if not plan.inside:
        return point, tuple(storages)
    path = f"{point}/{plan.inside}"
    # kubelet makes a subPath with the permissions of its volume, 0777 for an emptyDir.
    storages.append(
        agent_pb2.Storage(
            driver="local", source="local", options=["mode=0777"], mount_point=path, shared=True
        )
    )
    return path, tuple(storages)


def guest_directory(plan: GuestDirectory) -> Mounted:
    """A directory in the guest's memory."""
    point = f"{GUEST_SANDBOX}/local/{guest_name(plan.key)}"
    options = [f"mode={plan.mode:04o}"] + ([f"fsgid={plan.gid}"] if plan.gid else [])
    storage = agent_pb2.Storage(
        driver="local", source="local", options=options, mount_point=point, shared=True
    )
    return point, (storage,)


def scratch_disk(directory: str, address: str) -> Mounted:
    """The disk of an emptyDir; blocks that the pod frees go back to the host."""
    point = f"{GUEST_SANDBOX}/storage/{guest_name(directory)}"
    storage = agent_pb2.Storage(
        driver=agent_driver(address),
        source=address,
        fstype="ext4",
        options=["discard", "noatime"],
        mount_point=point,
    )
    return point, (storage,)


def assigned_disk(volume: DirectVolume, address: str, *, read_only: bool) -> Mounted:
    """A direct-assigned volume."""
    point = f"{GUEST_SANDBOX}/storage/{guest_name(volume.path)}"
    options = [*volume.options]
    if read_only and "ro" not in options:
        options = [option for option in options if option != "rw"] + ["ro"]
    group = None
    if volume.group is not None and "ro" not in options:
        group = agent_pb2.FSGroup(
            group_id=volume.group,
            group_change_policy=volume.group_policy,  # type: ignore[arg-type]
        )
    storage = agent_pb2.Storage(
        driver=agent_driver(address),
        source=address,
        fstype=volume.fstype,
        options=options,
        mount_point=point,
        fs_group=group,
    )
    return point, (storage,)
