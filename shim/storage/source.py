"""Looks at the source of a bind mount, so that what to do with it can be planned.

Source: stat(2), statvfs(3); kubelet's emptyDir, whose tmpfs carries the size limit.
"""

from __future__ import annotations

import os
import posixpath
import stat

from shim.errors import InvalidArgument, NotFound
from shim.storage import direct_volume
from shim.storage.mountinfo import inner_path, mount_of, parse_mountinfo
from shim.storage.socket_directory import find_sockets
from shim.storage.volumes import Source


def look_at(path: str, *, sockets: bool = False) -> Source:
    """Gather what planning needs to know of a bind mount's source. Blocks: use a thread.

    Args:
        path: absolute path.
        sockets: look for some in a directory.

    Raises:
        NotFound: there is nothing at ``path``.
        InvalidArgument: it can't be looked at, or its description is malformed.
        Unimplemented: it is described as something that is not served.
    """
    path = posixpath.normpath(path)
    direct = direct_volume.find(path)
    try:
        info = os.stat(path)
    except FileNotFoundError as error:
        if direct is None:
            raise NotFound(f"volume {path}: {error.strerror}") from error
        return Source(path, stat.S_IFDIR, direct=direct)
    except OSError as error:
        raise InvalidArgument(f"volume {path}: {error.strerror}") from error
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = parse_mountinfo(file.read())
    mount = mount_of(path, mounts)
    fstype = mount.fstype if mount is not None else ""
    size = 0
    if fstype in ("tmpfs", "hugetlbfs"):
        size = set_size(path)
    return Source(
        path=path,
        mode=info.st_mode,
        uid=info.st_uid,
        gid=info.st_gid,
        fstype=fstype,
        inside=inner_path(path, mount) if mount is not None else "",
        size=size,
        page_size=mount.options.get("pagesize", "") if mount is not None else "",
        direct=direct,
        sockets=sockets and stat.S_ISDIR(info.st_mode) and bool(find_sockets(path).sockets),
        covers=any(other.target.startswith(path.rstrip("/") + "/") for other in mounts),
    )


def set_size(path: str) -> int:
    """Bytes that the tmpfs at ``path`` may hold; 0 when it is half of the host's memory.

    That is what the kernel takes when nobody says a size, and is nothing to the guest.
    """
    found = os.statvfs(path)
    size = found.f_blocks * found.f_frsize
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 0 if abs(size - half) <= os.sysconf("SC_PAGE_SIZE") else size
