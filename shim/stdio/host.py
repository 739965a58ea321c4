"""The host side of one process's stdio, from Create until its output is drained."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator

import trio

from shim.errors import Internal, InvalidArgument, KatapyError, NotFound
from shim.stdio.frames import STDERR, STDOUT
from shim.stdio.logger import Logger, start_logger
from shim.stdio.pipes import FifoSource, FileSink, NullSink, PipeSink, Sink
from shim.stdio.target import FileTarget, LoggerTarget, PathTarget, parse_stdin, parse_target

DRAIN_TIMEOUT = 30.0
"""Seconds after the exit that a reader has to take the rest of the output."""

_log = logging.getLogger(__name__)


class Stdio:
    """Opened stdio of a process; make it with :func:`open_stdio`.

    It outlives the connections that carry its bytes: each runs in
    :func:`shim.stdio.relay.relay`.

    Attributes:
        stdin: what to read stdin from; None when the process has none.
        outputs: channel number to sink; with a terminal there is stdout alone.
        terminal: both outputs of the process are one stream.
        drained: set once all output is written and every write end is closed.
    """

    def __init__(
        self,
        stdin: FifoSource | None,
        outputs: dict[int, Sink],
        *,
        terminal: bool = False,
        logger: Logger | None = None,
    ) -> None:
        self.stdin = stdin
        self.outputs = outputs
        self.terminal = terminal
        self.drained = trio.Event()
        self._logger = logger
        self._relay_scope: trio.CancelScope | None = None
        self._drain_deadline: float | None = None

    def close_stdin(self) -> None:
        """CloseIO: end stdin once the pending bytes are forwarded. Idempotent."""
        if self.stdin is not None:
            self.stdin.close_write()

    def process_exited(self, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        """Start the end: clients that are gone are no longer waited for.

        The relay goes on until the guest's output has ended, at most
        ``drain_timeout`` seconds, and then sets ``drained``. Without a running
        relay there is nothing to come and ``drained`` is set at once.
        """
        if self._drain_deadline is not None or self.drained.is_set():
            return
        self._drain_deadline = trio.current_time() + drain_timeout
        for sink in self.outputs.values():
            sink.release()
        if self._relay_scope is None:
            self.close()
        else:
            self._relay_scope.deadline = self._drain_deadline

    @contextlib.contextmanager
    def relaying(self) -> Iterator[None]:
        """Hold this while a relay runs; bounds it once the process has exited."""
        if self._relay_scope is not None:
            raise Internal("stdio: a relay runs already")
        deadline = float("inf") if self._drain_deadline is None else self._drain_deadline
        with trio.CancelScope(deadline=deadline) as scope:
            self._relay_scope = scope
            try:
                yield
            finally:
                self._relay_scope = None
        if scope.cancelled_caught:
            _log.warning("stdio: output not taken by its reader in time is dropped")
            self.close()

    def relay_failed(self) -> None:
        """Give up on output of a process that has exited; else wait for a new relay."""
        if self._drain_deadline is not None:
            self.close()

    def close(self) -> None:
        """Close every descriptor and set ``drained``. Idempotent."""
        for sink in self.outputs.values():
            sink.close()
        if self.stdin is not None:
            self.stdin.close()
        self.drained.set()

    async def aclose(self) -> None:
        """Release everything, a logging program included. Idempotent."""
        self.close()
        logger, self._logger = self._logger, None
        if logger is not None:
            await logger.aclose()


async def open_stdio(
    stdin: str, stdout: str, stderr: str, terminal: bool, *, container_id: str, namespace: str
) -> Stdio:
    """Open what a Create or Exec request names, without waiting for any client.

    Args:
        stdin: FIFO path, or empty.
        stdout: FIFO path, ``file://``, ``binary://`` or ``binary-v2://`` URI, or
            empty to discard.
        stderr: as ``stdout``; ignored with a terminal and for ``file://``, where
            both outputs go to the file of stdout.
        terminal: the process has one stream for both outputs.
        container_id: for the environment of a logging program.
        namespace: containerd's, for the same.

    Raises:
        InvalidArgument: malformed, or a logging program that does not start.
        NotFound: a path that is not there.
        Unimplemented: a streaming URL.
        DeadlineExceeded: the logging program does not get ready.
        Internal: a path that can't be opened.
    """
    source_target = parse_stdin(stdin)
    target = parse_target(stdout)
    channels = [(STDOUT, target)]
    if not terminal:
        one_file = isinstance(target, FileTarget)
        channels.append((STDERR, target if one_file else parse_target(stderr)))

    with contextlib.ExitStack() as undo:
        outputs: dict[int, Sink] = {}
        logger: Logger | None = None
        source: FifoSource | None = None
        if source_target is not None:
            source = _open_source(source_target)
            undo.callback(source.close)
        for channel, wanted in channels:
            if not isinstance(wanted, LoggerTarget):
                outputs[channel] = _open_sink(wanted)
                undo.callback(outputs[channel].close)
        loggers = {wanted for _, wanted in channels if isinstance(wanted, LoggerTarget)}
        if len(loggers) > 1:
            raise InvalidArgument("stdio: stdout and stderr must name the same logging program")
        for wanted in loggers:
            logger = await start_logger(wanted, container_id=container_id, namespace=namespace)
            pipes = {STDOUT: logger.stdout, STDERR: logger.stderr}
            outputs.update(
                {channel: pipes[channel] for channel, named in channels if named == wanted}
            )
        undo.pop_all()
    return Stdio(source, outputs, terminal=terminal, logger=logger)


def _open_sink(target: PathTarget | FileTarget | None) -> Sink:
    if target is None:
        return NullSink()
    with _errors_for(target.path):
        if isinstance(target, PathTarget) and stat.S_ISFIFO(os.stat(target.path).st_mode):
            return PipeSink.open_fifo(target.path)
        return FileSink(target.path)


def _open_source(target: PathTarget) -> FifoSource:
    with _errors_for(target.path):
        if not stat.S_ISFIFO(os.stat(target.path).st_mode):
            raise InvalidArgument(f"stdin {target.path}: not a FIFO")
        return FifoSource(target.path)


@contextlib.contextmanager
def _errors_for(path: str) -> Iterator[None]:
    try:
        yield
    except KatapyError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"stdio {path}: {error.strerror}") from error
    except OSError as error:
        raise Internal(f"stdio {path}: {error.strerror}") from error
