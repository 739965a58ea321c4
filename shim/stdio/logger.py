"""A logging program: ``binary://`` stdio.

The program reads the process's output from descriptors 3 and 4 and says that it is
ready by writing to, or closing, descriptor 5. It runs for one process and ends with it.

Source: containerd runtime v2 README "Logging", core/runtime/v2/logging.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

import trio

from shim.errors import DeadlineExceeded, InvalidArgument
from shim.stdio.pipes import PipeSink
from shim.stdio.target import LoggerTarget

READY_TIMEOUT = 10.0
"""Seconds a logger has to become ready."""
EOF_GRACE = 1.0
"""Seconds a logger has to finish by itself after its input has ended."""
TERM_GRACE = 12.0
"""Seconds between SIGTERM and SIGKILL."""

_FIRST_FREE_FD = 10

Record = Callable[[int], Callable[[], None]]
"""Puts a process on record; what it returns takes it off again."""

_log = logging.getLogger(__name__)


class Logger:
    """A running logging program; make it with :func:`start_logger`."""

    def __init__(self, path: str, pid: int, stdout: PipeSink, stderr: PipeSink) -> None:
        self.forget: Callable[[], None] | None = None
        self.path = path
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self._pidfd: int | None = os.pidfd_open(pid)

    async def aclose(self) -> None:
        """End its input, wait for it, and use force when it does not go.

        Takes up to ``EOF_GRACE + TERM_GRACE`` seconds, even when cancelled: a
        process left behind would be nobody's.
        """
        self.stdout.close()
        self.stderr.close()
        if self._pidfd is None:
            return
        with trio.CancelScope(shield=True):
            for sent, grace in (
                (None, EOF_GRACE),
                (signal.SIGTERM, TERM_GRACE),
                (signal.SIGKILL, TERM_GRACE),
            ):
                if sent is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(self._pidfd, sent)
                with trio.move_on_after(grace):
                    await trio.lowlevel.wait_readable(self._pidfd)
                    break
            else:
                _log.error("logger %s: process %d survives SIGKILL", self.path, self.pid)
        _reap(self._pidfd)
        if self.forget is not None:
            self.forget()
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = None


async def start_logger(
    target: LoggerTarget, *, container_id: str, namespace: str, record: Record | None = None
) -> Logger:
    """Start a logging program and wait until it is ready.

    Args:
        target: program and arguments.
        container_id: goes into its environment as CONTAINER_ID.
        namespace: goes into its environment as CONTAINER_NAMESPACE.
        record: told of the process.

    Raises:
        InvalidArgument: it can't be executed, or ended without getting ready.
        DeadlineExceeded: it was not ready after ``READY_TIMEOUT`` seconds.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        stdout, stderr, ready = _Pipe.make(), _Pipe.make(), _Pipe.make()
        for fd in (stdout.read, stderr.read, ready.write):
            theirs.callback(os.close, fd)
        for fd in (stdout.write, stderr.write, ready.read):
            ours.callback(os.close, fd)
        environment = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
        pid = _spawn(target, environment, (stdout.read, stderr.read, ready.write))
        theirs.close()
        os.set_blocking(stdout.write, False)
        os.set_blocking(stderr.write, False)
        os.set_blocking(ready.read, False)
        ours.pop_all().callback(os.close, ready.read)
        logger = Logger(
            target.path,
            pid,
            PipeSink(f"{target.path} stdout", stdout.write),
            PipeSink(f"{target.path} stderr", stderr.write),
        )
        try:
            if record is not None:
                logger.forget = record(pid)
            await _wait_ready(target, ready.read)
        except BaseException:
            await logger.aclose()
            raise
        finally:
            trio.lowlevel.notify_closing(ready.read)
            os.close(ready.read)
    return logger


async def _wait_ready(target: LoggerTarget, ready: int) -> None:
    try:
        with trio.fail_after(READY_TIMEOUT):
            await trio.lowlevel.wait_readable(ready)
    except trio.TooSlowError as error:
        raise DeadlineExceeded(
            f"logger {target.path}: not ready after {READY_TIMEOUT:g} s; "
            "it has to write to or close descriptor 5"
        ) from error
    if not os.read(ready, 1) and target.must_signal_ready:
        raise InvalidArgument(f"logger {target.path}: ended before it said that it is ready")


def _spawn(target: LoggerTarget, environment: dict[str, str], fds: tuple[int, ...]) -> int:
    """Run the program with /dev/null on 0 to 2 and ``fds`` from 3 on; return its pid."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
    ]
    actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds, start=3)]
    command = (target.path, *target.arguments)
    try:
        # In a session of its own, so that what it leaves behind is known for not ours.
        return os.posix_spawn(target.path, command, environment, file_actions=actions, setsid=True)
    except OSError as error:
        raise InvalidArgument(f"logger {target.path}: {error.strerror}") from error


def _reap(pidfd: int) -> None:
    # A subreaper's loop may have been faster.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


class _Pipe(NamedTuple):
    read: int
    write: int

    @classmethod
    def make(cls) -> _Pipe:
        """Make a pipe whose numbers are clear of the ones the program gets."""
        low = os.pipe()
        try:
            return cls(*(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for fd in low))
        finally:
            for fd in low:
                os.close(fd)
