"""What a VMM writes into a named pipe or an inherited one: console, log, events.

A named pipe stands where the VMM wants a file: nothing grows on disk, and each line is
there as soon as it is written.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from vmm.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK = 65536
_F_SETPIPE_SZ = 1031
_WANTED_SIZE = 1 << 20


def make_fifo(path: Path, owner: tuple[int, int] | None = None) -> int:
    """Make a named pipe and return our end of it.

    It is open for writing as well, so that it neither ends when the VMM closes it nor
    keeps the VMM waiting for a reader.

    Args:
        path: where; what is there is replaced.
        owner: user and group that may write besides root.

    Raises:
        InvalidConfig: it can't be made there.
    """
    try:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        if owner is not None:
            os.chown(path, *owner)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidConfig(f"can't make a named pipe at {path}: {error.strerror}") from error
    enlarge(fd)
    return fd


def enlarge(fd: int) -> None:
    """Give a pipe a megabyte, as far as the user may have that."""
    with suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _WANTED_SIZE)


async def pump(fd: int, feed: Callable[[bytes], object], ended: trio.Event) -> None:
    """Feed what comes out of a pipe until it ends, or nobody is left to write.

    Args:
        fd: its reading end; closed afterwards.
        feed: takes the bytes.
        ended: set when the writing process is gone; what is in the pipe by then counts.
    """
    stream = trio.lowlevel.FdStream(fd)

    async def until_ended(scope: trio.CancelScope) -> None:
        await ended.wait()
        scope.cancel()

    async with stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_ended, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(_CHUNK):
                    feed(data)
            nursery.cancel_scope.cancel()
        if ended.is_set():
            with suppress(OSError):  # EAGAIN: read to its end
                while data := os.read(fd, _CHUNK):
                    feed(data)
