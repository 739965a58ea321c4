"""Keeps a copy of host files in the guest up to date.

The watch is set before the files are read, so nothing that changes in between is
missed; every change leads to a new look at all of it, so no order of events can leave
the copy behind. New files arrive first, the link that makes them visible after them,
and what is no longer needed goes last.

A single file that the guest may write comes back to the host when a container that had it
has ended, such as a termination message, which the kubelet reads then.

Source: inotify(7); see :mod:`shim.storage.tree` for kubelet's side.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from shim.errors import Internal, InvalidArgument
from shim.sockets import sha256_hex
from shim.storage import tree
from shim.storage.tree import Changed, Entry
from shim.storage.watch import Watch

BATCH_BYTES = 1 << 20
BATCH_CHANGES = 256
SETTLE_S = 0.02
"""Seconds of quiet to wait for after a change: a writer seldom makes a single one."""
ATTEMPTS = 50
"""Looks at a directory that changes each time before it is given up."""
RETRY_S = 0.05
LIMIT_BYTES = 64 << 20
"""The copy takes the guest's memory: larger volumes need a shared file system."""
LIMIT_FILES = 20_000
RETURN_BYTES = 1 << 20
"""The largest file that is brought back."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """One change in the guest; the fields are those of the extension's message."""

    path: str
    file_mode: int = 0
    uid: int = 0
    gid: int = 0
    file_size: int = 0
    offset: int = 0
    data: bytes = b""
    remove: bool = False
    in_place: bool = False


Push = Callable[[Sequence[FileChange]], Awaitable[None]]
Pull = Callable[[str, int], Awaitable[bytes]]
"""Reads a file of the copy: its name in it, and bytes at most."""


class SyncedFiles:
    """A directory or file of the host and its copy in the guest.

    Args:
        source: path on the host.
        push: applies changes in the guest, in order.
        is_file: it is a single file, which is put into the volume under its own name and
            written in place.
    """

    def __init__(self, source: str, push: Push, *, is_file: bool = False) -> None:
        self.source = source
        self._push = push
        self._is_file = is_file
        self._known: tree.Tree = {}
        self._digest = ""
        """Of the single file's content, as both sides have it; "" of one that is too large."""
        self._changing = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Copy everything, then follow the changes; started once the copy is complete.

        Raises:
            InvalidArgument: it is too large for a copy, or can't be read.
            Internal: it never stays the same for long enough, or can't be watched.
            TtrpcError, ConnectionClosed: the guest refused, or is gone.
        """
        try:
            with Watch() as watch:
                await self._update(watch)
                task_status.started()
                while True:
                    await watch.changed()
                    await trio.sleep(SETTLE_S)
                    watch.drain()
                    await self._update(watch)
        except OSError as error:
            raise InvalidArgument(f"volume {self.source}: {error.strerror}") from error

    async def _update(self, watch: Watch) -> None:
        for _ in range(ATTEMPTS):
            try:
                watch.add(self._watched(self._known))
                found = await trio.to_thread.run_sync(tree.scan, self.source)
                watch.add(self._watched(found))
                self._check_size(found)
                async with self._changing:
                    if not await self._has_same(found):
                        await self._apply(found)
            except Changed:
                await trio.sleep(RETRY_S)
                continue
            except FileNotFoundError:
                return  # kubelet takes the volume away while the container still ends
            self._known = found
            return
        raise Internal(f"volume {self.source} changes faster than it can be copied")

    async def bring_back(self, pull: Pull) -> None:
        """Write the single file on the host as the guest has it, if the guest has changed it.

        The file is written in place, as it would have been through a bind mount.

        Args:
            pull: reads the guest's.

        Raises:
            InvalidArgument: the guest's is too large, or the host's can't be written.
            TtrpcError: the guest has none, or is gone.
        """
        async with self._changing:
            if not self._digest:
                return  # it was too large from the start
            data = await pull(os.path.basename(self.source), RETURN_BYTES + 1)
            if len(data) > RETURN_BYTES:
                raise InvalidArgument(
                    f"volume {self.source}: the guest's has more than {RETURN_BYTES} bytes, "
                    "too many to be brought back; a shared file system has no such limit"
                )
            digest = sha256_hex(data)
            if digest == self._digest:
                return
            try:
                await trio.to_thread.run_sync(_rewrite, self.source, data)
            except OSError as error:
                raise InvalidArgument(f"volume {self.source}: {error.strerror}") from error
            self._digest = digest

    async def _has_same(self, content: tree.Tree) -> bool:
        """Whether a single file is as the guest has it: this has written it itself."""
        old, new = self._known.get(""), content.get("")
        if not self._is_file or old is None or new is None or new.size > RETURN_BYTES:
            return False
        if (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid):
            return False
        return await trio.to_thread.run_sync(_digest, self.source) == self._digest

    def _watched(self, content: tree.Tree) -> Iterator[str]:
        yield self.source
        for path, entry in content.items():
            if path and stat.S_ISDIR(entry.mode):
                yield f"{self.source}/{path}"

    def _check_size(self, content: tree.Tree) -> None:
        size = sum(entry.size for entry in content.values())
        if size > LIMIT_BYTES or len(content) > LIMIT_FILES:
            raise InvalidArgument(
                f"volume {self.source}: {len(content)} files of {size >> 20} MiB are too much to "
                f"be copied into the guest (at most {LIMIT_FILES}, {LIMIT_BYTES >> 20} MiB); "
                "shared_fs = 'virtio-fs' or 'virtio-9p' shares them instead"
            )

    async def _apply(self, content: tree.Tree) -> None:
        steps = tree.difference(self._known, content)
        batch: list[FileChange] = [
            FileChange(path, remove=True) for path in tree.replaced(self._known, content)
        ]
        size = 0
        for path in steps.put:
            if path == tree.DATA:
                # Readers switch to the new version here: it must be the current one still.
                await self._send(batch)
                batch, size = [], 0
                if await trio.to_thread.run_sync(self._swapped, content[path].target):
                    raise Changed(self.source)
            for change in self._changes(path, content[path]):
                batch.append(change)
                size += len(change.data)
                if size >= BATCH_BYTES or len(batch) >= BATCH_CHANGES:
                    await self._send(batch)
                    batch, size = [], 0
        gone = [path for path in steps.remove if path not in content]
        await self._send([*batch, *(FileChange(path, remove=True) for path in gone)])

    async def _send(self, batch: list[FileChange]) -> None:
        if batch:
            await self._push(batch)

    def _swapped(self, target: str) -> bool:
        try:
            return os.readlink(f"{self.source}/{tree.DATA}") != target
        except OSError:
            return True

    def _changes(self, path: str, entry: Entry) -> Iterator[FileChange]:
        name = os.path.basename(self.source) if self._is_file else path
        owner = (entry.mode, entry.uid, entry.gid)
        if stat.S_ISDIR(entry.mode):
            yield FileChange(name, *owner)
        elif stat.S_ISLNK(entry.mode):
            yield FileChange(name, *owner, data=os.fsencode(entry.target))
        else:
            source = os.path.realpath(self.source) if self._is_file else f"{self.source}/{path}"
            # Nobody sees a version's files before the link is swapped.
            at_once = self._is_file or path.startswith("..")
            content = b""
            for offset, data in tree.chunks(source, entry.size, BATCH_BYTES):
                if self._is_file and entry.size <= RETURN_BYTES:
                    content += data
                yield FileChange(name, *owner, entry.size, offset, data, in_place=at_once)
            if self._is_file:
                self._digest = sha256_hex(content) if entry.size <= RETURN_BYTES else ""


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return sha256_hex(file.read(RETURN_BYTES + 1))


def _rewrite(path: str, data: bytes) -> None:
    """Write a regular file that is there, without a moment at which it is empty."""
    fd = os.open(os.path.realpath(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "wb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file any more")
        file.write(data)
        file.truncate()
