"""The directory a pod's VM sees through virtio-fs or 9p.

There are two views of it. In ours everything is made; it is bound onto itself and made
shared before the server starts, so that what is mounted into it later reaches the other
view, in the server's own mount namespace too. The guest's view is read-only but for what
is mounted in it: a hostile guest can neither fill the host's memory there nor put a link
where we make the next directory. Names are never used twice, because a guest may still
know an old one's content; and everything is unmounted lazily, because the server may
hold files.

Source: mount_namespaces(7); the layout is what Kata's agent expects.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from shim.errors import Internal, InvalidArgument, KatapyError, NotFound, Unimplemented
from shim.storage.layers import Directory, is_stack, resolve
from shim.storage.mounts import Recorder, bind, mount, unmount
from shim.storage.options import Mount, Owners, without_propagation
from shim.storage.rootfs import SharedRootfs

GUEST_SHARE = "/run/kata-containers/shared/containers"
"""Where the guest mounts the share."""

OUR_VIEW = "mounts"
"""Beside what the guest sees: where its content is made."""

SANDBOX_MOUNTS = "sandbox-mounts"
"""Below the share: what the configuration shows every guest."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_NAME_MAX = 64

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Made:
    """Something made for a container; undone in reverse order."""

    kind: str
    path: str
    note: Any


@dataclass(slots=True)
class _Contents:
    made: list[_Made] = field(default_factory=list)


class Share:
    """A pod's shared directory.

    Args:
        root: host path of what the guest sees; the directory is made.
        recorder: gets every mount, file and directory before it is made.
    """

    def __init__(self, root: str, recorder: Recorder) -> None:
        self.root = root
        self._ours = os.path.join(os.path.dirname(root), OUR_VIEW)
        self._recorder = recorder
        self._own = _Contents()
        self._containers: dict[str, _Contents] = {}
        self._serial = 0

    async def prepare(self) -> None:
        """Make both views; before the file server starts.

        Raises:
            Internal: the host refuses.
        """
        await self._building(self._own, self._prepare)

    async def add_rootfs(self, container_id: str, plan: SharedRootfs) -> str:
        """Mount a container's root file system; returns its path in the guest.

        Raises:
            InvalidArgument, Internal, ResourceExhausted, DeadlineExceeded: as
                :func:`shim.storage.mounts.mount`; nothing is left behind.
        """
        contents = self._containers.setdefault(container_id, _Contents())
        # An id may come again, when its first Create failed for one.
        self._serial += 1
        folder = f"{self._serial}-{container_id}"
        relative = f"{folder}/rootfs"

        async def build(made: _Contents) -> None:
            self._mkdir(made, os.path.join(self._ours, folder), container_id)
            root = os.path.join(self._ours, relative)
            self._mkdir(made, root, container_id)
            if not plan.mounts:
                note = await bind(plan.directory, root, _ForContainer(self._recorder, container_id))
                made.made.append(_Made("mount", root, note))
            if is_stack(plan.mounts):
                await self._mount_stack(made, plan.mounts, root, container_id)
                return
            for entry in plan.mounts:
                target = root
                if entry.target.strip("/"):
                    # Below a mounted root the path may lead anywhere: resolve it there.
                    target = _inside(root, entry.target)
                await self._mount(made, entry, target, container_id)

        await self._building(contents, build)
        return f"{GUEST_SHARE}/{relative}"

    async def _mount_stack(
        self, made: _Contents, mounts: Sequence[Mount], root: str, container_id: str
    ) -> None:
        """Mount what the last of the mounts builds on beside the share, and that one in it."""
        base = os.path.join(os.path.dirname(self.root), f"layers-{container_id}")
        self._mkdir(made, base, container_id)
        points: list[str] = []
        for number, entry in enumerate(mounts):
            resolved, directories = resolve(entry, points)
            target = root if number == len(mounts) - 1 else f"{base}/{number}"
            if target != root:
                self._mkdir(made, target, container_id)
            for directory in directories:
                await trio.to_thread.run_sync(_make_directory, directory)
            await self._mount(made, resolved, target, container_id)
            points.append(target)

    async def add_volume(
        self,
        owner: str,
        source: str,
        *,
        read_only: bool = False,
        writable_below: bool = False,
        follow: bool = True,
        owners: Owners | None = None,
        recursive: bool = True,
    ) -> str:
        """Share a directory or file of the host; returns its path in the guest.

        A device node that the guest makes there can't be opened by the file server.

        Args:
            owner: whose it is, for :meth:`remove`; becomes part of the path.
            source: absolute path.
            read_only: the guest can't write to it, whatever it mounts or remounts.
            writable_below: read-only is what is at ``source``, not what is mounted below.
            follow: mounts that appear below ``source`` later are seen in the guest.
            owners: whose the files appear to be in the guest, of an id-mapped mount.
            recursive: with the mounts below it.

        Raises:
            NotFound: there is no ``source``.
            Unimplemented: it is a device node, which is attached, not shared.
            InvalidArgument, Internal, DeadlineExceeded: it can't be bound.
        """
        try:
            mode = os.stat(source).st_mode
        except FileNotFoundError as error:
            raise NotFound(f"volume {source}: {error.strerror}") from error
        except OSError as error:
            raise InvalidArgument(f"volume {source}: {error.strerror}") from error
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            raise Unimplemented(f"volume {source}: a device node of the host is not in the VM")
        self._serial += 1
        base = _UNSAFE.sub("_", os.path.basename(source.rstrip("/")) or "root")[:_NAME_MAX]
        name = f"{self._serial}-{owner}-{base}"
        contents = self._containers.setdefault(owner, _Contents())

        async def build(made: _Contents) -> None:
            target = os.path.join(self._ours, name)
            self._make_like(made, source, target)
            note = await bind(
                source,
                target,
                self._recorder,
                read_only=read_only,
                writable_below=writable_below,
                follow=follow,
                recursive=recursive,
                devices=False,
                owners=owners,
            )
            made.made.append(_Made("mount", target, note))

        await self._building(contents, build)
        return f"{GUEST_SHARE}/{name}"

    async def add_sandbox_mount(self, entry: str) -> None:
        """Share a host path of ``sandbox_bind_mounts`` under its own name, for all the pod.

        Args:
            entry: the path, with ``:ro`` (as without) or ``:rw`` after it.

        Raises:
            NotFound: there is no such path.
            InvalidArgument: another one has the same name.
            Internal, DeadlineExceeded: it can't be shared.
        """
        folder = os.path.join(self._ours, SANDBOX_MOUNTS)
        path, target, read_only = _sandbox_mount(entry, folder)

        async def build(made: _Contents) -> None:
            self._mkdir(made, folder, "")
            self._make_like(made, path, target)
            note = await bind(path, target, self._recorder, read_only=read_only, devices=False)
            made.made.append(_Made("mount", target, note))

        await self._building(self._own, build)

    async def remove(self, owner: str) -> None:
        """Take everything of a container or other owner away. Idempotent.

        What can't be undone is logged and stays on record; the rest is done anyway.
        """
        contents = self._containers.pop(owner, None)
        if contents is not None:
            await self._undo(contents)

    async def aclose(self) -> None:
        """Take everything away; after the file server has ended. Idempotent."""
        for container_id in list(self._containers):
            await self.remove(container_id)
        await self._undo(self._own)

    async def _prepare(self, made: _Contents) -> None:
        parent = os.path.dirname(self.root)
        os.makedirs(parent, mode=0o711, exist_ok=True)
        self._mkdir(made, self._ours, "")
        # Private first: its events are to reach the server, not the host.
        entry = Mount("bind", self._ours, "", ("bind", "rprivate", "rshared"))
        note = await mount(entry, self._ours, self._recorder)
        made.made.append(_Made("mount", self._ours, note))
        self._mkdir(made, self.root, "")
        note = await bind(self._ours, self.root, self._recorder, read_only=True, recursive=False)
        made.made.append(_Made("mount", self.root, note))

    async def _building(self, contents: _Contents, build: Callable[[_Contents], Any]) -> None:
        """Run ``build``; what it made joins ``contents``, or is undone if it fails."""
        fresh = _Contents()
        try:
            await build(fresh)
        except BaseException as error:
            await self._undo(fresh)
            if isinstance(error, OSError):
                raise Internal(f"share {self.root}: {error.strerror} ({error.filename})") from error
            raise
        contents.made += fresh.made

    async def _mount(self, made: _Contents, entry: Mount, target: str, container_id: str) -> None:
        # A private mount would keep what is mounted in it next from the guest's view.
        entry = replace(entry, options=without_propagation(entry.options))
        note = await mount(entry, target, _ForContainer(self._recorder, container_id))
        made.made.append(_Made("mount", target, note))

    def _mkdir(self, made: _Contents, path: str, container_id: str) -> None:
        recorder = _ForContainer(self._recorder, container_id)
        if os.path.isdir(path):
            return
        note = recorder.add("dir", path=path)
        made.made.append(_Made("dir", path, note))
        os.mkdir(path, 0o755)

    def _make_like(self, made: _Contents, source: str, target: str) -> None:
        """Make what ``source`` can be bound over."""
        if os.path.isdir(source):
            self._mkdir(made, target, "")
        else:
            self._touch(made, target)

    def _touch(self, made: _Contents, path: str) -> None:
        note = self._recorder.add("file", path=path)
        made.made.append(_Made("file", path, note))
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))

    async def _undo(self, contents: _Contents) -> None:
        # Shielded, and bounded by the deadline of each unmount.
        with trio.CancelScope(shield=True):
            while contents.made:
                item = contents.made.pop()
                try:
                    if item.kind == "mount":
                        await unmount(item.path)
                    elif item.kind == "dir":
                        _gone(os.rmdir, item.path)
                    else:
                        _gone(os.unlink, item.path)
                except (KatapyError, OSError) as error:
                    _log.error("share: %s %s stays: %s", item.kind, item.path, error)
                else:
                    self._recorder.remove(item.note)


class _ForContainer:
    """A recorder that adds whose the resource is."""

    def __init__(self, recorder: Recorder, container_id: str) -> None:
        self._recorder = recorder
        self._fields = {"container": container_id} if container_id else {}

    def add(self, kind: str, **fields: Any) -> Any:
        """See :class:`Recorder`."""
        return self._recorder.add(kind, **fields, **self._fields)

    def remove(self, entry: Any) -> None:
        """See :class:`Recorder`."""
        self._recorder.remove(entry)


def _sandbox_mount(entry: str, folder: str) -> tuple[str, str, bool]:
    """Path of an entry of ``sandbox_bind_mounts``, its target, and whether it is read-only."""
    path, mode = (entry[:-3], entry[-2:]) if entry.endswith((":ro", ":rw")) else (entry, "ro")
    path = os.path.normpath(path)
    if not path.startswith("/") or not os.path.exists(path):
        raise NotFound(f"[runtime] sandbox_bind_mounts: there is no {path}")
    target = os.path.join(folder, os.path.basename(path))
    if os.path.lexists(target):
        raise InvalidArgument(f"[runtime] sandbox_bind_mounts: another path is named as {path}")
    return path, target, mode == "ro"


def _make_directory(directory: Directory) -> None:
    """Make a directory in a file system that is the container's own, if it is not there."""
    if not os.path.isdir(directory.path):
        os.makedirs(directory.path, exist_ok=True)
        os.chown(directory.path, *directory.owner)
        os.chmod(directory.path, directory.mode)


def _inside(root: str, target: str) -> str:
    resolved = os.path.realpath(os.path.join(root, target.lstrip("/")))
    if resolved != root and not resolved.startswith(root + "/"):
        raise InvalidArgument(f"rootfs mount target {target!r} leaves the root")
    return resolved


def _gone(remove: Callable[[str], None], path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove(path)
