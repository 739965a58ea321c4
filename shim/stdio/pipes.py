"""The host ends of a process's stdio: what output is written to, what stdin is read from.

Every descriptor is non-blocking and close-on-exec. A stalled reader makes ``write``
wait, which in turn holds back the guest: nothing is dropped and nothing piles up.

Source: containerd cio and runc shim process/io.go; fifo(7); F_SETPIPE_SZ in fcntl(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from typing import Protocol

import trio

CHUNK = 256 << 10
"""Bytes taken from a stdin FIFO in one read."""

_PIPE_SIZE = 1 << 20

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where one output of a process goes."""

    async def write(self, data: bytes | memoryview) -> None:
        """Take all of ``data``; waits as long as the reader does not read."""

    async def settle(self) -> None:
        """Wait, behind the last write, until the reader can't lose any of it."""

    def release(self) -> None:
        """From now on a vanished reader means that nobody wants the data."""

    def close(self) -> None:
        """Give the reader its end of file. Idempotent."""


class Source(Protocol):
    """Where a process's stdin comes from."""

    async def read(self) -> bytes:
        """Return the next bytes, or nothing at the end."""

    def close_write(self) -> None:
        """End it after the bytes that are there now. Idempotent."""

    def close(self) -> None:
        """Take no more. Idempotent."""


class NullSink:
    """Discards."""

    async def write(self, data: bytes | memoryview) -> None:
        """Take all of ``data`` and forget it."""

    async def settle(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PipeSink:
    """The write end of a FIFO or pipe.

    Args:
        name: for log lines.
        writer: non-blocking write end; owned by the sink.
        guard: a read end of the same FIFO that is never read from. It keeps the
            FIFO writable while a client is away (a restart of containerd), so that
            data waits for the next reader instead of raising EPIPE.
    """

    def __init__(self, name: str, writer: int, guard: int | None = None) -> None:
        self._name = name
        self._writer: int | None = writer
        self._guard = guard
        _enlarge(writer)

    @classmethod
    def open_fifo(cls, path: str) -> PipeSink:
        """Open both ends of the FIFO at ``path``, so that no reader has to be there.

        Raises:
            OSError: as open(2).
        """
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        guard = os.open(path, os.O_RDONLY | flags)
        try:
            writer = os.open(path, os.O_WRONLY | flags)
        except BaseException:
            os.close(guard)
            raise
        return cls(path, writer, guard)

    async def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``, or drop what is left once there is no reader for good."""
        view = memoryview(data)
        while view and self._writer is not None:
            try:
                view = view[os.write(self._writer, view) :]
            except BlockingIOError:
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._writer)
            except BrokenPipeError:
                _log.warning("stdio %s: the reader is gone, output is dropped", self._name)
                self.close()

    async def settle(self) -> None:
        """Do nothing; what is in a FIFO stays there for its reader."""

    def release(self) -> None:
        """Close the guard: from now on a FIFO without a client's reader is EPIPE."""
        guard, self._guard = self._guard, None
        if guard is not None:
            os.close(guard)

    def close(self) -> None:
        """Close all ends; what a reader has not read yet stays readable for it."""
        self.release()
        writer, self._writer = self._writer, None
        if writer is not None:
            trio.lowlevel.notify_closing(writer)
            os.close(writer)


class FileSink:
    """A log file, appended to. Both outputs may have one on the same path.

    Raises:
        OSError: the file or its directory can't be made.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._path = path
        self._fd: int | None = os.open(path, flags, 0o644)

    async def write(self, data: bytes | memoryview) -> None:
        """Append ``data``; a full disk costs the output, never the container."""
        if self._fd is None:
            return
        # One of its own: the sink may be closed, and the number taken, while it is in use.
        fd = os.dup(self._fd)
        try:
            # Files can't be polled, and a disk may stall: off the loop.
            await trio.to_thread.run_sync(_write_all, fd, data)
        except OSError as error:
            _log.warning("stdio %s: %s, output is dropped", self._path, error.strerror)
            self.close()
        finally:
            os.close(fd)

    async def settle(self) -> None:
        """Do nothing; what is in the file stays there."""

    def release(self) -> None:
        """Do nothing; a file has no reader."""

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class FifoSource:
    """A stdin FIFO, read until :meth:`close_write` was called and it is empty.

    A write end of our own is held so that a client which detaches is no end of
    file: that comes from CloseIO alone.

    Args:
        path: the FIFO.

    Raises:
        OSError: as open(2).
    """

    def __init__(self, path: str) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._reader: int | None = os.open(path, os.O_RDONLY | flags)
        self._keeper: int | None = None
        self._waiting: trio.CancelScope | None = None
        try:
            self._keeper = os.open(path, os.O_WRONLY | flags)
        except BaseException:
            os.close(self._reader)
            raise
        _enlarge(self._reader)

    async def read(self) -> bytes:
        """Return the next bytes, or nothing at the end."""
        while self._reader is not None:
            try:
                return os.read(self._reader, CHUNK)
            except BlockingIOError:
                if self._keeper is None:
                    break  # CloseIO, and what was pending has been read
            with trio.CancelScope() as self._waiting:
                await trio.lowlevel.wait_readable(self._reader)
        return b""

    def close_write(self) -> None:
        """End stdin after the bytes that are in the FIFO now. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            os.close(keeper)
        if self._waiting is not None:
            self._waiting.cancel()

    def close(self) -> None:
        """Close both ends; a client that writes on gets EPIPE."""
        self.close_write()
        reader, self._reader = self._reader, None
        if reader is not None:
            trio.lowlevel.notify_closing(reader)
            os.close(reader)


def _enlarge(fd: int) -> None:
    # The limit is the administrator's (pipe-max-size, pipe-user-pages-soft).
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
