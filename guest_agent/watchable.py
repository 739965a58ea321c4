"""Copies of small volumes that follow the originals, for shims that ask for them so.

A file server passes no events on, so programs that wait for a change of a ConfigMap would
never see one. Kata's shims have the agent look every two seconds and copy what has changed;
ours sends the changes itself. What is too large for that is bound instead.

Source: Kata's ``watchable-bind`` storages (watcher.rs): interval, limits, places.
"""

from __future__ import annotations

import os
import stat

from . import libc
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import Loop

DRIVER = "watchable-bind"
ENTRIES_MAX = 16
BYTES_MAX = 1 << 20
_INTERVAL_SECONDS = 2.0
_TEMPORARY = ".katapy-watched"

Entry = tuple[int, int, int, int, str]  # mode, owner, group, modification time, link's target


class Watched:
    """One such copy, complete when it is made.

    Args:
        source: directory or file.
        target: where its copy is to be.

    Raises:
        OSError: it can't be copied.
    """

    __slots__ = ("_bound", "_known", "_loop", "_source", "_stopped", "_target")

    def __init__(self, loop: Loop, source: str, target: str) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._known: dict[str, Entry] = {}
        self._bound = False
        self._stopped = False
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self._update()
        if not self._bound:
            loop.call_later(_INTERVAL_SECONDS, self._look)

    def stop(self) -> None:
        """Follow no more, and take the copy away."""
        self._stopped = True
        if self._bound:
            try:
                libc.umount(self._target)
            except OSError as error:
                log("error", "can't unmount", point=self._target, error=error)
        for name in sorted(self._known, reverse=True):
            self._remove(name)
        _discard(self._target)

    def _look(self) -> None:
        if self._stopped or self._bound:
            return
        try:
            self._update()
        except OSError as error:  # half of a change; the next look finds all of it
            log("warning", "volume not followed", source=self._source, error=error)
        self._loop.call_later(_INTERVAL_SECONDS, self._look)

    def _update(self) -> None:
        found = self._scan()
        if found is None:
            self._bind()
            return
        changed = [name for name, entry in found.items() if self._known.get(name) != entry]
        # Links last: what they lead to is there then, and "..data" is swapped at once.
        for name in sorted(changed, key=lambda name: (stat.S_ISLNK(found[name][0]), name)):
            self._copy(name, found[name])
        for name in sorted(self._known.keys() - found.keys(), reverse=True):
            self._remove(name)
        self._known = found

    def _scan(self) -> dict[str, Entry] | None:
        """What is there, by path below the source; None when it is too much."""
        found: dict[str, Entry] = {}
        size = 0
        names = [""]
        while names:
            name = names.pop()
            path = self._path(self._source, name)
            try:
                info = os.lstat(path)
                link = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
                if stat.S_ISDIR(info.st_mode):
                    names += [f"{name}/{inner}".lstrip("/") for inner in os.listdir(path)]
            except FileNotFoundError:
                if not name:
                    raise
                continue  # it has just gone
            when = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
            found[name] = (info.st_mode, info.st_uid, info.st_gid, when, link)
            size += 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            if len(found) > ENTRIES_MAX or size > BYTES_MAX:
                return None
        return found

    def _bind(self) -> None:
        if os.path.isdir(self._source):
            os.makedirs(self._target, exist_ok=True)
        else:
            with open(self._target, "a"):
                pass
        libc.mount(self._source, self._target, "", libc.MS_BIND)
        self._bound = True
        log("info", "volume too large to be followed, bound", source=self._source)

    def _copy(self, name: str, entry: Entry) -> None:
        mode, owner, group, when, link = entry
        source, target = self._path(self._source, name), self._path(self._target, name)
        if stat.S_ISDIR(mode):
            if not os.path.isdir(target):
                os.mkdir(target)
            os.chown(target, owner, group)
            os.chmod(target, stat.S_IMODE(mode))
            return
        # A container has bound a single file itself, so it stays the same one.
        made = f"{target}{_TEMPORARY}" if name else target
        if stat.S_ISLNK(mode):
            _discard(made)
            os.symlink(link, made)
            os.chown(made, owner, group, follow_symlinks=False)
        elif stat.S_ISREG(mode):
            with open(source, "rb") as reader, open(made, "wb") as writer:
                writer.write(reader.read(BYTES_MAX))
            os.chown(made, owner, group)
            os.chmod(made, stat.S_IMODE(mode))
            os.utime(made, ns=(when, when))
        else:
            return  # nothing that kubelet makes
        if name:
            os.rename(made, target)

    def _remove(self, name: str) -> None:
        if name:
            _discard(self._path(self._target, name))

    def _path(self, base: str, name: str) -> str:
        return f"{base}/{name}" if name else base


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except IsADirectoryError:
        try:
            os.rmdir(path)
        except OSError as error:
            log("error", "can't remove folder", error=error)
    except FileNotFoundError:
        pass
