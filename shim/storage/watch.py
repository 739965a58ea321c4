"""Waits for changes in directories.

Source: inotify(7).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

import trio

_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_IN_CLOSE_WRITE = 0x8
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_MOVE_SELF = 0x800
_IN_EXCL_UNLINK = 0x0400_0000
_CHANGES = (
    _IN_MODIFY
    | _IN_ATTRIB
    | _IN_CLOSE_WRITE
    | _IN_MOVED_FROM
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_MOVE_SELF
)
NAMES = _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_MOVE_SELF
"""What there is in a directory, whatever is written to it."""
_BUFFER = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """One inotify instance. Close it, or use it as a context manager.

    Args:
        changes: which changes count.

    Raises:
        OSError: EMFILE when the user has too many (fs.inotify.max_user_instances).
    """

    def __init__(self, changes: int = _CHANGES) -> None:
        self._changes = changes
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def add(self, paths: Iterable[str]) -> None:
        """Watch these directories (or files) too; one that is gone is left out.

        Raises:
            OSError: ENOSPC when the user has too many (fs.inotify.max_user_watches).
        """
        for path in paths:
            try:
                _call(
                    "inotify_add_watch",
                    self._fd,
                    os.fsencode(path),
                    ctypes.c_uint32(self._changes | _IN_EXCL_UNLINK),
                    path=path,
                )
            except (FileNotFoundError, NotADirectoryError):
                continue

    async def changed(self) -> None:
        """Wait for a change, and take in all that have come by then."""
        await trio.lowlevel.wait_readable(self._fd)
        self.drain()

    def drain(self) -> None:
        """Forget the changes seen so far."""
        try:
            while os.read(self._fd, _BUFFER):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _call(name: str, *arguments: object, path: str = "") -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path or name)
    return result
