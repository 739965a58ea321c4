"""Mounting what a request lists as storages.

Mount points are counted: two storages with the same one are mounted once, and
unmounted when the last user is gone. Storages marked as shared stay until the
sandbox ends.

Source: Kata's Storage vocabulary; mount(8), mount(2).
"""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import block, libc
from .log import log
from .loop import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from protos.lite import Message

    from .loop import Loop
    from .watchable import Watched

_SET = {
    "ro": libc.MS_RDONLY,
    "nosuid": libc.MS_NOSUID,
    "nodev": libc.MS_NODEV,
    "noexec": libc.MS_NOEXEC,
    "sync": libc.MS_SYNCHRONOUS,
    "remount": libc.MS_REMOUNT,
    "mand": libc.MS_MANDLOCK,
    "dirsync": libc.MS_DIRSYNC,
    "noatime": libc.MS_NOATIME,
    "nodiratime": libc.MS_NODIRATIME,
    "bind": libc.MS_BIND,
    "rbind": libc.MS_BIND | libc.MS_REC,
    "relatime": libc.MS_RELATIME,
    "strictatime": libc.MS_STRICTATIME,
    "lazytime": libc.MS_LAZYTIME,
    "silent": libc.MS_SILENT,
}
_CLEAR = {
    "rw": libc.MS_RDONLY,
    "suid": libc.MS_NOSUID,
    "dev": libc.MS_NODEV,
    "exec": libc.MS_NOEXEC,
    "async": libc.MS_SYNCHRONOUS,
    "nomand": libc.MS_MANDLOCK,
    "atime": libc.MS_NOATIME,
    "diratime": libc.MS_NODIRATIME,
    "norelatime": libc.MS_RELATIME,
    "nostrictatime": libc.MS_STRICTATIME,
    "loud": libc.MS_SILENT,
}
_PROPAGATION = {
    "private": libc.MS_PRIVATE,
    "slave": libc.MS_SLAVE,
    "shared": libc.MS_SHARED,
    "unbindable": libc.MS_UNBINDABLE,
    "rprivate": libc.MS_PRIVATE | libc.MS_REC,
    "rslave": libc.MS_SLAVE | libc.MS_REC,
    "rshared": libc.MS_SHARED | libc.MS_REC,
    "runbindable": libc.MS_UNBINDABLE | libc.MS_REC,
}
_CREATE_DIRECTORY = "io.katacontainers.volume.overlayfs.create_directory="
_OVERLAY_RW = "io.katacontainers.fs-opt.overlay-rw"
_DRIVERS_WITH_DEVICE = frozenset({"blk", "blk-ccw", "mmioblk", "scsi", "nvdimm"})
_SHARED = "/run/kata-containers/shared/"
_WATCHABLE, _LAYERS = "watchable-bind", "erofs.multi-layer"
_LAYER = "X-kata.multi-layer=true"
_WATCHED_FOLDER = "/watchable/"
DRIVERS = (
    *sorted(_DRIVERS_WITH_DEVICE),
    "9p",
    "bind",
    "ephemeral",
    _LAYERS,
    "local",
    "overlayfs",
    "virtio-fs",
    _WATCHABLE,
)
# What one container mounts below a volume with rshared, others of the pod see with rslave.
_PROPAGATES = frozenset({"virtio-fs", "9p", "ephemeral", "blk", "blk-ccw", "mmioblk", "scsi"})
_DRIVER_SECONDS = 10.0  # emulated, on a busy host; the mount itself tells what is missing then
_DRIVER_POLL_SECONDS = 0.02
_ALWAYS, _ON_ROOT_MISMATCH = 0, 1


def parse_options(options: Sequence[str]) -> tuple[int, list[int], list[str]]:
    """Split mount options into flags, propagation changes, and data for the file system."""
    flags = 0
    propagation = []
    data = []
    for entry in options:
        for option in entry.split(","):
            if option in _SET:
                flags |= _SET[option]
            elif option in _CLEAR:
                flags &= ~_CLEAR[option]
            elif option in _PROPAGATION:
                propagation.append(_PROPAGATION[option])
            elif option and option != "defaults":
                data.append(option)
    return flags, propagation, data


def mount(source: str, target: str, fstype: str, options: Sequence[str]) -> None:
    """Mount as mount(8) would, with what one option list asks for.

    Raises:
        OSError: with the target as file name.
    """
    flags, propagation, data = parse_options(options)
    if fstype == "bind":
        flags |= libc.MS_BIND
        fstype = ""
    if flags & libc.MS_BIND:
        libc.mount(source, target, "", flags & (libc.MS_BIND | libc.MS_REC))
        rest = flags & ~(libc.MS_BIND | libc.MS_REC)
        if rest:  # a bind takes its flags only when it is remounted
            libc.mount("", target, "", libc.MS_BIND | libc.MS_REMOUNT | rest)
    else:
        libc.mount(source, target, fstype, flags, ",".join(data))
    for change in propagation:
        libc.mount("", target, "", change)


class Storages:
    """The mount points in use, with their number of users."""

    __slots__ = ("_adding", "_loop", "_mounted", "_users", "_watched")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._adding = Lock(loop)  # two containers may come with the same mount point at once
        self._users: dict[str, int] = {}
        self._mounted: set[str] = set()
        self._watched: dict[str, Watched] = {}

    async def add_all(self, storages: Sequence[Message], container_dir: str = "") -> list[str]:
        """Mount storages in order; all or none.

        Args:
            storages: the request's list.
            container_dir: folder of the container that asks, "" for the sandbox.

        Returns:
            Their mount points, for `release`.

        Raises:
            TtrpcError: a storage is malformed or can't be mounted.
        """
        if any(s["driver"] == _LAYERS or _LAYER in (s.get("options") or ()) for s in storages):
            from .erofs_layers import ungrouped  # Kata's runtime-rs alone sends them

            storages = ungrouped(storages, container_dir)
        added: list[str] = []
        try:
            for storage in storages:
                async with self._adding:
                    added.append(await self._add(storage, container_dir))
        except BaseException:
            self.release(added)
            raise
        return added

    async def _add(self, storage: Message, container_dir: str) -> str:
        driver, point = storage["driver"], os.path.normpath(storage["mount_point"] or "/")
        if driver not in DRIVERS:
            raise TtrpcError(status.INVALID_ARGUMENT, f"unknown storage driver {driver!r}")
        if not point.startswith("/") or point == "/":
            raise TtrpcError(status.INVALID_ARGUMENT, f"bad mount point {point!r} of {driver}")
        users = self._users.get(point, 0)
        if not users:
            try:
                await self._mount(storage, driver, point, container_dir)
            except OSError as error:
                raise TtrpcError(
                    status.INTERNAL,
                    f"storage {driver} {storage['source']} at {point}: {error.strerror or error}",
                ) from error
        self._users[point] = users + (2 if storage["shared"] and not users else 1)
        return point

    async def _mount(self, storage: Message, driver: str, point: str, container_dir: str) -> None:
        source, fstype, options = storage["source"], storage["fstype"], list(storage["options"])
        if driver in _DRIVERS_WITH_DEVICE:
            refused = [text for text in storage["driver_options"] if text]
            if refused:
                text = f"driver options {refused} of {driver} are not implemented by this agent"
                raise TtrpcError(status.UNIMPLEMENTED, text)
            source = await block.find(self._loop, driver, source)
            if storage.get("partition"):
                source = await block.find_partition(self._loop, source, storage["partition"])
        elif driver == "virtio-fs":
            fstype = fstype or "virtiofs"
        elif driver == "9p":
            fstype = fstype or "9p"
        elif driver == _WATCHABLE:
            self._watch(source, point)
            return
        elif driver == "bind":
            fstype = "bind"
        elif driver == "overlayfs":
            fstype = "overlay"
            options = _prepare_overlay(storage, options, container_dir)
        mode, owner = _take_ids(driver, options)
        if fstype == "bind" and not os.path.isdir(source):
            os.makedirs(os.path.dirname(point), exist_ok=True)
            with open(point, "a"):
                pass
        else:
            os.makedirs(point, exist_ok=True)
        if driver == "local":
            os.chmod(point, mode)
        else:
            if fstype == "hugetlbfs":
                options = _reserve_huge_pages(options)
            if fstype != "bind":
                await self._until_known(fstype)
            mount(source, point, fstype, options)
            self._mounted.add(point)
            if driver in _PROPAGATES:
                libc.mount("", point, "", libc.MS_SHARED)
        if owner is not None:
            os.chown(point, -1, owner)
            os.chmod(point, os.stat(point).st_mode & 0o7777 | 0o2000)
        group = storage["fs_group"]
        if group is not None:
            apply_group(point, group["group_id"], group["group_change_policy"])

    def _watch(self, source: str, point: str) -> None:
        from .watchable import Watched  # only Kata's shims ask for it

        base, separator, _ = point.partition(_WATCHED_FOLDER)
        if not separator:
            text = f"{_WATCHABLE}: {point} is below no folder {_WATCHED_FOLDER}"
            raise TtrpcError(status.INVALID_ARGUMENT, text)
        folder = f"{base}{_WATCHED_FOLDER}".rstrip("/")
        if folder not in self._mounted:
            os.makedirs(folder, exist_ok=True)
            mount("tmpfs", folder, "tmpfs", ["mode=0700", "nodev"])
            self._mounted.add(folder)
            self._users[folder] = 1  # until the sandbox ends
        self._watched[point] = Watched(self._loop, source, point)

    async def _until_known(self, fstype: str) -> None:
        """Give a modular kernel, whose drivers load behind the agent, time to have it."""
        waited = 0.0
        while waited < _DRIVER_SECONDS:
            with open("/proc/filesystems") as file:
                if any(line.split()[-1] == fstype for line in file):
                    return
            await self._loop.sleep(_DRIVER_POLL_SECONDS)
            waited += _DRIVER_POLL_SECONDS

    def release(self, points: Sequence[str]) -> None:
        """Give up mount points, last first, and unmount those nobody uses any more."""
        for point in reversed(points):
            users = self._users.get(point, 0) - 1
            if users > 0:
                self._users[point] = users
                continue
            self._users.pop(point, None)
            if point in self._watched:
                self._watched.pop(point).stop()
            if point in self._mounted:
                self._mounted.discard(point)
                try:
                    libc.umount(point)
                except OSError as error:
                    log("error", "can't unmount", point=point, error=error)

    def release_all(self) -> None:
        """Unmount everything, shared storages too, in reverse order of mounting."""
        points = list(self._users)
        self._users = dict.fromkeys(points, 1)
        self.release(points)

    def update(self, storages: Sequence[Message]) -> None:
        """Remount ephemeral storages with new options, such as another size.

        Raises:
            TtrpcError: one is not mounted or can't be changed.
        """
        for storage in storages:
            point = os.path.normpath(storage["mount_point"] or "/")
            if storage["driver"] != "ephemeral" or point not in self._mounted:
                raise TtrpcError(status.INVALID_ARGUMENT, f"{point} is no ephemeral storage")
            options = list(storage["options"])
            _take_ids("ephemeral", options)
            try:
                mount("tmpfs", point, "tmpfs", [*options, "remount"])
            except OSError as error:
                raise TtrpcError(status.INTERNAL, f"remount {point}: {error.strerror}") from error


def _take_ids(driver: str, options: list[str]) -> tuple[int, int | None]:
    """Take the options meant for the agent: `fsgid=`, and `mode=` of a plain folder."""
    mode, owner = 0o777, None
    for option in list(options):
        key, _, value = option.partition("=")
        if key == "fsgid":
            owner = int(value)
            options.remove(option)
        elif key == "mode" and driver == "local":
            mode = int(value, 8)
            options.remove(option)
    return mode, owner


def _prepare_overlay(storage: Message, options: list[str], container_dir: str) -> list[str]:
    for option in storage["driver_options"]:
        if option.startswith(_CREATE_DIRECTORY):
            os.makedirs(option.removeprefix(_CREATE_DIRECTORY), exist_ok=True)
    if _OVERLAY_RW in options or _OVERLAY_RW in storage["driver_options"]:
        options = [option for option in options if option != _OVERLAY_RW]
        for role in ("upper", "work"):
            folder = f"{container_dir or os.path.dirname(storage['mount_point'])}/{role}"
            os.makedirs(folder, exist_ok=True)
            options.append(f"{role}dir={folder}")
    return options


def _reserve_huge_pages(options: list[str]) -> list[str]:
    """Have the kernel set aside the pages a hugetlbfs mount of a given size needs."""
    values = dict(option.partition("=")[::2] for option in options)
    page = values.get("pagesize", "2M")
    unit = {"K": 1, "M": 1 << 10, "G": 1 << 20}.get(page[-1:].upper())
    if unit is None or not page[:-1].isdigit():
        raise TtrpcError(status.INVALID_ARGUMENT, f"bad hugetlbfs page size {page!r}")
    kilobytes = int(page[:-1]) * unit
    folder = f"/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB"
    pages = int(values.get("size", "0")) // (kilobytes << 10)
    with open(f"{folder}/nr_hugepages", "r+") as file:
        have = int(file.read())
        file.seek(0)
        file.write(str(have + pages))
    return options


def enter_submounts(spec: dict[str, Any]) -> None:
    """Have the container's root and shared volumes mounted here, before a container does it.

    A host mount below the share is mounted by whoever walks into it first, in that one's
    mount namespace. Two containers would have a file system each, and a page cache each. And
    it would end with the container's last process: one that is killed with reads under way,
    as in the middle of an exec, makes the kernel find inodes in use then ("Busy inodes after
    unmount of virtiofs", a BUG with CONFIG_BUG_ON_DATA_CORRUPTION), and the process, stuck
    in its exit, never gets to be waited for.
    """
    root = (spec.get("root") or {}).get("path") or ""
    for source in (root, *((entry.get("source") or "") for entry in spec.get("mounts") or ())):
        if source.startswith(_SHARED):
            try:
                os.stat(source + "/")
            except OSError:
                pass  # no folder, so no submount either


def leave_submount(root: str) -> None:
    """Let the root file system of a container that has ended go."""
    if not root.startswith(_SHARED):
        return
    try:
        # Answered in turn: after what was being read, and then after what that closed.
        os.statvfs(root)
        os.statvfs(root)
        libc.umount(root)
    except OSError:
        pass  # not one of its own, or the host took it away


def apply_group(path: str, group: int, policy: int) -> None:
    """Give a volume to a group: owner group, group permissions, set-group-id folders."""
    if policy == _ON_ROOT_MISMATCH:
        info = os.stat(path)
        if info.st_gid == group and info.st_mode & 0o2070 == 0o2070:
            return
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = f"{folder}/{name}"
            if not os.path.islink(entry):
                _give(entry, group)
    _give(path, group)


def _give(path: str, group: int) -> None:
    info = os.stat(path)
    os.chown(path, -1, group)
    extra = 0o2070 if os.path.isdir(path) else 0o060
    os.chmod(path, info.st_mode & 0o7777 | extra)
