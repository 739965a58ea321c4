"""Where cgroups are on this host, and where a pod's belongs. Pure.

Source: OCI runtime-spec config-linux.md "Cgroups Path"; systemd.slice(5) for slice names;
proc_pid_mountinfo(5); kernel cgroup-v1/cgroups.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from shim.errors import InvalidArgument

ROOT = "/sys/fs/cgroup"
_NO_CONTROLLERS = frozenset(
    ("rw", "ro", "xattr", "noprefix", "clone_children", "seclabel", "relatime")
)


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """The cgroup file systems of the host.

    Args:
        version: 2 when the one hierarchy has the controllers, 1 when each controller has
            its own, as on hybrid hosts; 0 when there is none.
        mounts: mount point by controller (``memory``, ``name=systemd``). With version 2
            it has the one key ``""``.
    """

    version: int
    mounts: dict[str, str]

    @property
    def roots(self) -> list[str]:
        """The mount points, each once: controllers may share one."""
        return list(dict.fromkeys(self.mounts.values()))

    def root(self, controller: str) -> str | None:
        """Where a controller is, None when nowhere."""
        return self.mounts.get("" if self.version == 2 else controller)


def find_hierarchies(mountinfo: str, root: str = ROOT) -> Hierarchies:
    """Find the cgroup file systems in a mount table.

    Args:
        mountinfo: contents of ``/proc/self/mountinfo``.
        root: only what is mounted at or below it counts.
    """
    mounts: dict[str, str] = {}
    unified = ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or fields[3] != "/":
            continue
        point = fields[4]
        if point != root and not point.startswith(root + "/"):
            continue
        if kind[0] == "cgroup2" and point == root:
            unified = point
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                if option not in _NO_CONTROLLERS and not option.startswith("release_agent="):
                    mounts[option] = point
    if unified and not mounts:
        return Hierarchies(2, {"": unified})
    return Hierarchies(1 if mounts else 0, mounts)


@dataclass(frozen=True, slots=True)
class PodPath:
    """The cgroup that a container's ``cgroupsPath`` lies in.

    Args:
        parent: absolute from a hierarchy's root, such as ``/kubepods/pod1``.
        systemd: it is a slice, whose controllers are systemd's to switch on.
    """

    parent: str
    systemd: bool

    def child(self, name: str) -> str:
        """A cgroup in it."""
        return posixpath.join(self.parent, name)


def pod_path(cgroups_path: str) -> PodPath | None:
    """Find the cgroup of a pod from the path of one of its containers.

    Args:
        cgroups_path: OCI ``linux.cgroupsPath``: a path, or ``slice:prefix:name``.

    Returns:
        None when the path is empty.

    Raises:
        InvalidArgument: it is neither.
    """
    if not cgroups_path:
        return None
    if cgroups_path.count(":") == 2 and not cgroups_path.startswith("/"):
        return PodPath(slice_path(cgroups_path.split(":")[0]), systemd=True)
    # As runc has it: from the root, and never out of it.
    path = posixpath.normpath("/" + cgroups_path).lstrip("/")
    if not path or ":" in path:
        raise InvalidArgument(f"linux.cgroupsPath {cgroups_path!r} names no cgroup")
    return PodPath("/" + posixpath.dirname(path), systemd=False)


def slice_path(name: str) -> str:
    """Return the path of a systemd slice.

    >>> slice_path("kubepods-pod1.slice")
    '/kubepods.slice/kubepods-pod1.slice'

    Raises:
        InvalidArgument: it is no name of a slice.
    """
    if name in ("", "-.slice"):
        return "/system.slice" if not name else "/"
    stem = name.removesuffix(".slice")
    parts = stem.split("-")
    if stem == name or "/" in name or not all(parts):
        raise InvalidArgument(f"linux.cgroupsPath: {name!r} is no name of a slice")
    return "".join(f"/{'-'.join(parts[: end + 1])}.slice" for end in range(len(parts)))
