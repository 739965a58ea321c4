"""Mounts that one container made, shown in another.

The first one's program makes the mount, a FUSE file system for one; so it is waited for.
A copy of the agent goes into both mount namespaces: what a container does to its paths can
keep that waiting, but not the agent.

Source: Kata's SharedMount; mount_namespaces(7), open_tree(2), move_mount(2).
"""

from __future__ import annotations

import os
import stat

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from protos.lite import Message

    from .children import Children
    from .container import Container
    from .loop import Loop

_READY_SECONDS = 10.0
_POLL_SECONDS = 0.1
_CARRY_SECONDS = 10.0


async def bring(
    loop: Loop,
    children: Children,
    find: Callable[[str], Container | None],
    mount: Message,
    init: int,
) -> None:
    """Show a mount of one container in another one.

    Args:
        children: runs the copy.
        find: gives the running container with a name.
        mount: a SharedMount.
        init: the process that has the other one's mount namespace.

    Raises:
        TtrpcError: FAILED_PRECONDITION, there is no such container or it makes no such
            mount in time; INVALID_ARGUMENT, the mount can't be where it is to be.
    """
    source, target = (os.path.normpath(mount[key]) for key in ("src_path", "dst_path"))
    what = f"shared mount {mount['name']}, {source} of container {mount['src_ctr']}"
    for path in (mount["src_path"], mount["dst_path"]):
        if not path.startswith("/") or ".." in path.split("/"):
            raise TtrpcError(status.INVALID_ARGUMENT, f"{what}: bad path {path!r}")
    waited = 0.0
    while True:
        container = find(mount["src_ctr"])
        if container is None or container.init is None:
            raise TtrpcError(status.FAILED_PRECONDITION, f"{what}: no such container runs")
        if _is_mounted(container.init.pid, source):
            break
        if waited >= _READY_SECONDS:
            text = f"{what}: nothing was mounted there within {_READY_SECONDS:g} s"
            raise TtrpcError(status.FAILED_PRECONDITION, text)
        await loop.sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS
    owner = container.init.pid
    failure = await children.call(lambda: _carry(owner, source, init, target), _CARRY_SECONDS)
    if failure:
        raise TtrpcError(status.INVALID_ARGUMENT, f"{what} at {target}: {failure}")


def _is_mounted(pid: int, path: str) -> bool:
    try:
        with open(f"/proc/{pid}/mounts") as file:
            return any(line.split(" ", 2)[1] == path for line in file)
    except OSError:  # it has just ended
        return False


def _carry(owner: int, source: str, taker: int, target: str) -> None:
    first, second = (
        os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for pid in (owner, taker)
    )
    libc.setns(first, libc.CLONE_NEWNS)  # paths are resolved at the container's root
    tree = libc.clone_tree(source)
    is_folder = stat.S_ISDIR(os.fstat(tree).st_mode)
    libc.setns(second, libc.CLONE_NEWNS)
    if is_folder:
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    libc.attach_tree(tree, target)
