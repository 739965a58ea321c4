"""The unix sockets in a shared directory, each reachable in the guest, as they come and go.

Through a file server the guest sees a socket of the host as an inode at which nobody
listens. The agent's socket is mounted over it, at the same path. Sockets that nobody of the
host answers at are left alone: the pod's own containers may have made them.

Source: unix(7), inotify(7); protos/katapy/extension.proto (ListenSocketRequest.cover).
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import trio

from shim.errors import KatapyError, NotFound
from shim.storage.host_socket import HostSocket, hold
from shim.storage.options import Owners
from shim.storage.socket_proxy import Owner, SocketProxy
from shim.storage.watch import NAMES, Watch

SOCKETS_MAX = 64
"""Of one directory; each has a task here and a listener in the guest."""
ENTRIES_MAX = 4096
"""Of one directory and those in it, looked at."""
PROBE_TIMEOUT_S = 1.0
RETRY_S = 0.5
TRIES = 20
"""A server binds its socket first and listens at it then; nothing tells of that."""
SETTLE_S = 0.05
LOOKS_MAX = 3
"""In a row: who makes directories all the time is not waited for."""
_LIMIT = "fs.inotify.max_user_instances, max_user_watches"

MakeProxy = Callable[[HostSocket, str, Owner, str], SocketProxy]
"""From the host's socket, the agent's path, its owner, and the path to be covered."""

_log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Which socket it is; another one at the same path differs."""

    device: int
    inode: int
    changed: int


@dataclass(frozen=True, slots=True)
class Found:
    """What is in a directory.

    Attributes:
        sockets: path below it, and which socket it is and whose.
        directories: it and those in it.
        complete: there was nothing more to look at.
    """

    sockets: dict[str, tuple[Identity, Owner]]
    directories: tuple[str, ...]
    complete: bool


def find_sockets(path: str) -> Found:
    """Look for sockets in a directory and in those it has, on its own file system.

    Blocks: use a thread. What goes meanwhile is left out; no link is followed.
    """
    sockets: dict[str, tuple[Identity, Owner]] = {}
    directories = [path]
    left = ENTRIES_MAX
    device = os.stat(path).st_dev
    for directory in directories:  # which grows by those of the first
        try:
            entries = os.scandir(directory)
        except OSError:
            continue
        with entries:
            for entry in entries:
                left -= 1
                if left < 0 or len(sockets) >= SOCKETS_MAX:
                    return Found(sockets, tuple(directories), False)
                try:
                    if directory is path and entry.is_dir(follow_symlinks=False):
                        if entry.stat(follow_symlinks=False).st_dev == device:
                            directories.append(entry.path)
                        continue
                    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                        continue
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISSOCK(info.st_mode) and info.st_dev == device:
                    identity = Identity(info.st_dev, info.st_ino, info.st_ctime_ns)
                    owner = Owner(info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode))
                    sockets[os.path.relpath(entry.path, path)] = identity, owner
    return Found(sockets, tuple(directories), True)


@dataclass(slots=True)
class _Socket:
    identity: Identity
    tries: int = 0
    scope: trio.CancelScope | None = None
    proxy: SocketProxy | None = None


class SocketDirectory:
    """A shared directory whose sockets are proxied.

    Args:
        source: the directory on the host.
        shared: the same as the guest's agent sees it.
        listening: prefix of the paths in the guest at which the agent listens.
        make: makes a proxy.
        owners: whose the files appear to be in the guest.
    """

    def __init__(
        self,
        source: str,
        shared: str,
        listening: str,
        make: MakeProxy,
        owners: Owners | None = None,
    ) -> None:
        self._source = source
        self._shared = shared
        self._listening = listening
        self._make = make
        self._owners = owners
        self._known: dict[str, _Socket] = {}
        self._folder = -1
        self._watched: set[str] = set()
        self._pause = trio.CancelScope()
        self._serial = 0
        self._warned = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once those that answer now are in the guest.

        Raises:
            NotFound: the directory is gone.
        """
        try:
            self._folder = hold(self._source)
        except OSError as error:
            raise NotFound(f"volume {self._source}: {error.strerror}") from error
        try:
            await self._follow(task_status)
        finally:
            os.close(self._folder)

    async def _follow(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            try:
                watch = Watch(NAMES)
            except OSError as error:
                # The directory itself is of use without.
                text = "volume %s: sockets that come later are not in the guest: %s (%s)"
                _log.warning(text, self._source, error.strerror, _LIMIT)
                await self._settle(None, nursery)
                task_status.started()
                await trio.sleep_forever()
            with watch:
                await self._settle(watch, nursery)
                task_status.started()
                while True:
                    self._pause = trio.move_on_after(RETRY_S if self._waiting() else math.inf)
                    with self._pause:
                        await watch.changed()
                        await trio.sleep(SETTLE_S)
                        watch.drain()
                    await self._settle(watch, nursery)

    def _waiting(self) -> bool:
        return any(s.proxy is None and s.tries < TRIES for s in self._known.values())

    async def _look(self, watch: Watch | None) -> Found:
        found = Found({}, (), True)
        try:
            for _ in range(LOOKS_MAX):
                found = await trio.to_thread.run_sync(find_sockets, self._source)
                if watch is None or self._watched.issuperset(found.directories):
                    break
                # What came before the watch is seen by another look.
                watch.add(found.directories)
                self._watched = set(found.directories)
        except FileNotFoundError:
            return Found({}, (), True)
        except OSError as error:
            text = "volume %s: not all changes of its sockets are seen: %s (%s)"
            _log.warning(text, self._source, error.strerror, _LIMIT)
        self._watched.intersection_update(found.directories)
        return found

    async def _settle(self, watch: Watch | None, nursery: trio.Nursery) -> None:
        """Have the guest's sockets be what the host's are now."""
        found = await self._look(watch)
        if not found.complete and not self._warned:
            self._warned = True
            _log.warning(
                "volume %s: only the first %d sockets of its first %d files are in the guest",
                self._source,
                SOCKETS_MAX,
                ENTRIES_MAX,
            )
        for name in self._known.keys() - found.sockets.keys():
            self._end(self._known.pop(name))
        for name, (identity, owner) in found.sockets.items():
            known = self._known.setdefault(name, _Socket(identity))
            if known.identity != identity:
                known.identity, known.tries = identity, 0
                if known.proxy is not None:
                    await known.proxy.cover_again()
            if known.proxy is None and known.tries < TRIES:
                known.tries += 1
                host = HostSocket(f"{self._source}/{name}", self._folder, name)
                if await answers(host):
                    await self._begin(host, known, owner, nursery)

    async def _begin(
        self, host: HostSocket, known: _Socket, owner: Owner, nursery: trio.Nursery
    ) -> None:
        self._serial += 1
        if self._owners is not None:
            owner = Owner(self._owners.uid(owner.uid), self._owners.gid(owner.gid), owner.mode)
        proxy = self._make(
            host,
            f"{self._listening}-{self._serial}",
            owner,
            f"{self._shared}/{host.name}",
        )
        known.scope, known.proxy = trio.CancelScope(), proxy
        await nursery.start(self._serve, known, known.scope)

    async def _serve(
        self, known: _Socket, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        proxy, begun = known.proxy, False
        assert proxy is not None
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(proxy.run)
                    begun, known.tries = True, 0
                    task_status.started()
        except* KatapyError as group:
            level = logging.WARNING if known.tries <= 1 else logging.DEBUG
            _log.log(level, "%s", group.exceptions[0])
        finally:
            if known.proxy is proxy:
                known.proxy = known.scope = None
            if not scope.cancel_called:
                again = trio.current_time() + RETRY_S
                self._pause.deadline = min(self._pause.deadline, again)
        if not begun:
            task_status.started()

    def _end(self, known: _Socket) -> None:
        if known.scope is not None:
            known.scope.cancel()


async def answers(host: HostSocket) -> bool:
    """Whether a program of this host accepts connections (streams) at a socket.

    It sees one that ends at once.
    """
    with trio.move_on_after(PROBE_TIMEOUT_S):
        try:
            await (await host.connect()).aclose()
        except OSError:
            return False
    return True
