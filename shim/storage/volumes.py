"""Decides how a volume of a container reaches the guest. Pure: facts in, a plan out.

kubelet hands over every kind of volume as a bind mount; what it is shows in its path
and in its file system.

Source: kubelet's directory layout (pods/UID/volumes/kubernetes.io~KIND/NAME and
pods/UID/volume-subpaths/NAME/CONTAINER/INDEX); reference kata-features.md D12 to D20.
"""

from __future__ import annotations

import posixpath
import stat
from dataclasses import dataclass
from typing import Literal

from shim.errors import Unimplemented
from shim.storage.direct_volume import DirectVolume

EmptyDirMode = Literal["shared-fs", "block-plain"]

_SYNCED = frozenset(("configmap", "secret", "projected", "downward-api"))


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """What configuration and VM say about volumes.

    Attributes:
        kubelet_root: kubelet's directory.
        emptydir_mode: an emptyDir on disk is a shared directory or a disk of its own.
        guest_emptydir: an emptyDir on disk is a directory in the guest's memory instead.
        can_share: the VM shares directories of the host.
        can_attach: the VM takes further disks.
        can_push: the agent takes files.
        can_listen: the agent listens at sockets for us.
        can_cover: and puts its own over those of a shared directory.
        socket_directories: below these sockets may come later.
    """

    kubelet_root: str = "/var/lib/kubelet"
    emptydir_mode: EmptyDirMode = "shared-fs"
    guest_emptydir: bool = False
    can_share: bool = True
    can_attach: bool = True
    can_push: bool = True
    can_listen: bool = True
    can_cover: bool = True
    socket_directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A bind mount's source, looked at.

    Attributes:
        path: clean absolute path on the host.
        mode: of stat(2), of what the path leads to.
        uid: its owner.
        gid: its group.
        fstype: of the file system it is on.
        inside: its path in that file system, "" for the root of it.
        size: of that file system in bytes, 0 when nobody has set one.
        page_size: of a hugetlbfs, such as ``2M``.
        direct: what a CSI driver wrote about it, if it is a direct-assigned volume.
        covers: something is mounted below it.
        sockets: it is a directory that has unix sockets in it, or in a directory of it.
    """

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    fstype: str = ""
    inside: str = ""
    size: int = 0
    page_size: str = ""
    direct: DirectVolume | None = None
    covers: bool = False
    sockets: bool = False


@dataclass(frozen=True, slots=True)
class SharedVolume:
    """A directory or file of the host, shared.

    Attributes:
        source: its path.
        covers: something is mounted below it, which may be more writable than it is.
        sockets: the unix sockets in it lead to the host.
    """

    source: str
    covers: bool = False
    sockets: bool = False


@dataclass(frozen=True, slots=True)
class PushedVolume:
    """Files of the host, copied into the guest and kept up to date.

    Attributes:
        source: directory or file.
        is_file: it is a single file, which is rewritten in place: a bind mount of it
            in the guest would not see another file take its name.
    """

    source: str
    is_file: bool = False


@dataclass(frozen=True, slots=True)
class MemoryVolume:
    """A tmpfs in the guest, the same one for all containers of the pod.

    Attributes:
        key: path on the host that it stands for.
        fstype: ``tmpfs`` or ``hugetlbfs``.
        options: its mount options.
        inside: the directory in it that is meant, "" for all of it.
    """

    key: str
    fstype: str
    options: tuple[str, ...]
    inside: str = ""


@dataclass(frozen=True, slots=True)
class GuestDirectory:
    """A directory in the guest's own file system, the same one for the pod's containers."""

    key: str
    mode: int
    gid: int


@dataclass(frozen=True, slots=True)
class ScratchDisk:
    """An emptyDir as a disk image in the directory that kubelet made for it."""

    directory: str
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True)
class AssignedDisk:
    """A disk whose file system the guest mounts (direct-assigned volume)."""

    volume: DirectVolume


@dataclass(frozen=True, slots=True)
class MountedDisk:
    """A disk whose file system the guest mounts, as the mount's own options say."""

    volume: DirectVolume


@dataclass(frozen=True, slots=True)
class RawDisk:
    """A block device that the container sees as one."""

    path: str


@dataclass(frozen=True, slots=True)
class ProxiedSocket:
    """A unix socket of the host."""

    path: str
    uid: int
    gid: int
    mode: int


VolumePlan = (
    SharedVolume
    | PushedVolume
    | MemoryVolume
    | GuestDirectory
    | ScratchDisk
    | AssignedDisk
    | MountedDisk
    | RawDisk
    | ProxiedSocket
)


def plan_volume(source: Source, settings: VolumeSettings) -> VolumePlan:
    """Choose the way of one bind mount's source into the guest.

    Raises:
        Unimplemented: this VM has none for it.
    """
    if source.direct is not None:
        _need(settings.can_attach, source, "the VM takes no further disks")
        return AssignedDisk(source.direct)
    if stat.S_ISBLK(source.mode):
        _need(settings.can_attach, source, "the VM takes no further disks")
        return RawDisk(source.path)
    if stat.S_ISCHR(source.mode):
        raise Unimplemented(f"volume {source.path}: a device node of the host is not in the VM")
    if stat.S_ISSOCK(source.mode):
        _need(settings.can_listen, source, "the guest's agent proxies no unix sockets")
        return ProxiedSocket(source.path, source.uid, source.gid, stat.S_IMODE(source.mode))
    kind, below = kubelet_volume(source.path, settings.kubelet_root)
    if source.fstype in ("tmpfs", "hugetlbfs") and kind in ("empty-dir", "subpath"):
        return _memory(source, settings.kubelet_root)
    if kind == "empty-dir" and not below and stat.S_ISDIR(source.mode):
        plan = _empty_dir(source, settings)
        if plan is not None:
            return plan
    if kind in _SYNCED and not below and settings.can_push:
        return PushedVolume(source.path)
    if settings.can_share:
        return SharedVolume(source.path, source.covers, _has_sockets(source, settings))
    if settings.can_push and (stat.S_ISDIR(source.mode) or stat.S_ISREG(source.mode)):
        return PushedVolume(source.path, is_file=stat.S_ISREG(source.mode))
    raise Unimplemented(f"volume {source.path}: this VM shares no files (shared_fs = 'none')")


def may_have_sockets(path: str, settings: VolumeSettings) -> bool:
    """Whether sockets of the host are to be looked for in the directory at a path.

    In kubelet's volumes, such as an emptyDir, they are the pod's own.
    """
    return settings.can_cover and not kubelet_volume(path, settings.kubelet_root)[0]


def _has_sockets(source: Source, settings: VolumeSettings) -> bool:
    if not stat.S_ISDIR(source.mode) or not may_have_sockets(source.path, settings):
        return False
    below = f"{source.path.rstrip('/')}/"
    return source.sockets or any(
        below.startswith(f"{directory.rstrip('/')}/") for directory in settings.socket_directories
    )


def kubelet_volume(path: str, root: str) -> tuple[str, str]:
    """Say what kind of kubelet's volumes a path is.

    Args:
        path: clean absolute path.
        root: kubelet's directory.

    Returns:
        The kind, such as ``configmap``, ``subpath`` for a subPath of any of them and
        "" for none; and the path below the volume, "" for the volume itself.

    >>> kubelet_volume("/k/pods/u/volumes/kubernetes.io~secret/s/a", "/k")
    ('secret', 'a')
    """
    prefix = root.rstrip("/") + "/pods/"
    if not path.startswith(prefix):
        return "", ""
    _, *parts = path.removeprefix(prefix).split("/")
    if len(parts) == 4 and parts[0] == "volume-subpaths":
        return "subpath", ""
    plugin, _, kind = parts[1].partition("~") if len(parts) >= 3 else ("", "", "")
    if plugin == "kubernetes.io" and parts[0] == "volumes":
        return kind, "/".join(parts[3:])
    return "", ""


def _memory(source: Source, kubelet_root: str) -> MemoryVolume:
    """A memory-backed emptyDir, or a subPath of one."""
    kind, below = kubelet_volume(source.path, kubelet_root)
    key, inside = source.path, source.inside
    if kind == "subpath":
        # pods/UID/volume-subpaths/NAME/… is a directory of pods/UID/volumes/…/NAME.
        base, name = posixpath.dirname(posixpath.dirname(source.path)), ""
        base, name = posixpath.split(base)
        key = f"{posixpath.dirname(base)}/volumes/kubernetes.io~empty-dir/{name}"
    elif below:
        key = source.path.removesuffix("/" + below)
    if source.fstype == "hugetlbfs":
        options = [f"pagesize={source.page_size or '2M'}"]
        options += [f"size={source.size}"] if source.size else []
        return MemoryVolume(key, "hugetlbfs", tuple(options), inside)
    options = [] if inside else [f"mode={stat.S_IMODE(source.mode):o}"]
    options += [f"uid={source.uid}"] if source.uid and not inside else []
    options += [f"gid={source.gid}"] if source.gid and not inside else []
    options += [f"size={source.size}"] if source.size else []
    return MemoryVolume(key, "tmpfs", tuple(options), inside)


def _empty_dir(source: Source, settings: VolumeSettings) -> VolumePlan | None:
    if settings.guest_emptydir:
        return GuestDirectory(source.path, stat.S_IMODE(source.mode), source.gid)
    if settings.can_attach and (settings.emptydir_mode == "block-plain" or not settings.can_share):
        mode = stat.S_IMODE(source.mode)
        return ScratchDisk(source.path, source.uid, source.gid, mode)
    if not settings.can_share:
        return GuestDirectory(source.path, stat.S_IMODE(source.mode), source.gid)
    return None


def _need(available: bool, source: Source, reason: str) -> None:
    if not available:
        raise Unimplemented(f"volume {source.path}: {reason}")
