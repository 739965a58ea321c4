"""How each kind of ledger entry is undone. Standard library only.

Each function is idempotent: what is gone already is a success. It touches nothing
but what the entry names, follows no symbolic link and crosses no mount point.
"""

from __future__ import annotations

import errno
import os
import time

from shim import sockets, syscalls
from shim.cleanup import process_table
from shim.net import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.cleanup.ledger import Entry

_BUSY_WAIT = 1.0  # seconds a cgroup may take to empty after its processes were killed
_CGROUP_ROOT = "/sys/fs/cgroup/"


class UndoError(Exception):
    """A thing could not be undone; the text says why and on what."""


def undo(entry: Entry) -> None:
    """Undo one entry that is no process.

    Raises:
        UndoError, OSError: it could not be undone.
    """
    action = _ACTIONS.get(entry.kind)
    if action is None:
        raise UndoError(f"no way to undo a {entry.kind}")
    action(entry)


def _unmount(entry: Entry) -> None:
    syscalls.unmount_all(entry.text("target"))


def _remove_socket(entry: Entry) -> None:
    path = entry.text("path")
    if os.path.isdir(os.path.dirname(path)) and not sockets.remove_stale(path):
        raise UndoError(f"somebody still listens at {path}")


def _remove_file(entry: Entry) -> None:
    try:  # noqa: SIM105 - contextlib is not worth importing here
        os.unlink(entry.text("path"))
    except (FileNotFoundError, NotADirectoryError):
        pass


def _remove_dir(entry: Entry) -> None:
    path = entry.text("path")
    try:
        if entry.fields.get("tree"):
            remove_tree(path)
        else:
            os.rmdir(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(path):
            raise


def remove_tree(path: str) -> None:
    """Remove a directory and what is in it, without entering another mount.

    Raises:
        UndoError: something is mounted below it; nothing of that is touched.
    """
    parent = os.open(os.path.dirname(path) or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _empty(parent, os.path.basename(path), path, None)
        os.rmdir(os.path.basename(path), dir_fd=parent)
    finally:
        os.close(parent)


def _empty(parent: int, name: str, path: str, mount: int | None) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=parent)
    try:
        here = _mount_id(fd)
        if (_mount_id(parent) if mount is None else mount) != here:
            raise UndoError(f"{path} is a mount point: unmount it first")
        with os.scandir(fd) as entries:
            found = [(item.name, item.is_dir(follow_symlinks=False)) for item in entries]
        for child, is_dir in found:
            if is_dir:
                _empty(fd, child, f"{path}/{child}", here)
                os.rmdir(child, dir_fd=fd)
            else:
                os.unlink(child, dir_fd=fd)
    finally:
        os.close(fd)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise UndoError("/proc/self/fdinfo shows no mount id")


def _remove_cgroup_at(path: str) -> None:
    deadline = time.monotonic() + _BUSY_WAIT
    while True:
        _kill_cgroup(path)
        for directory, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        if not os.path.isdir(path):
            return
        if time.monotonic() > deadline:
            raise UndoError(f"{path} is still busy (see its cgroup.procs)")
        time.sleep(0.01)  # version 1 tells nobody when a cgroup becomes empty


def _remove_pod_cgroup(entry: Entry) -> None:
    name = os.path.normpath(entry.text("name"))
    if not name.startswith("/") or "katapy" not in name or name.startswith("//"):
        raise UndoError(f"{name} is no cgroup of ours")
    roots = [_CGROUP_ROOT.rstrip("/")]
    try:
        roots += [f"{_CGROUP_ROOT}{mount}" for mount in os.listdir(_CGROUP_ROOT)]
    except FileNotFoundError:
        return
    for root in roots:
        if os.path.isdir(root + name):
            _remove_cgroup_at(root + name)
            parent = os.path.dirname(root + name)
            if parent.endswith("/katapy_overhead"):
                try:  # noqa: SIM105 - contextlib is not worth importing here
                    os.rmdir(parent)
                except OSError:  # other pods are in it
                    pass


def _kill_cgroup(path: str) -> None:
    identities = []
    for directory, _, files in os.walk(path):
        if "cgroup.procs" not in files:
            continue
        try:
            with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                pids = [int(line) for line in file]
        except (FileNotFoundError, OSError):
            continue
        for pid in pids:
            started = process_table.start_time(pid)
            if started is not None and pid != os.getpid():
                identities.append((pid, started))
    process_table.kill(identities, _BUSY_WAIT / 2)


def _remove_netdev(entry: Entry) -> None:
    netlink.delete_link(entry.text("name"), entry.text("netns"), entry.text("netns_id"))


def _remove_qdisc(entry: Entry) -> None:
    link, parent = entry.text("link"), entry.text("parent")
    netlink.delete_qdisc(link, parent, entry.text("netns"), entry.text("netns_id"))


def _give_back_function(entry: Entry) -> None:
    from shim.net import pci

    pci.give_back(entry.text("address"), entry.text("driver"))


_ACTIONS: dict[str, Callable[[Entry], None]] = {
    "mount": _unmount,
    "socket": _remove_socket,
    "file": _remove_file,
    "dir": _remove_dir,
    "pod_cgroup": _remove_pod_cgroup,
    "netdev": _remove_netdev,
    "qdisc": _remove_qdisc,
    "pci_driver": _give_back_function,
}
