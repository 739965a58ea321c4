"""The host side of one process's stdio: what Create and Exec requests name, opened."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from shim.errors import Internal, InvalidArgument, KatapyError, NotFound
from shim.stdio.frames import STDERR, STDOUT
from shim.stdio.logger import Logger, Record, start_logger
from shim.stdio.pipes import FifoSource, FileSink, NullSink, PipeSink, Sink, Source
from shim.stdio.streaming import Streams
from shim.stdio.target import (
    FileTarget,
    LoggerTarget,
    PathTarget,
    StreamTarget,
    parse_stdin,
    parse_target,
)


class Stdio:
    """Opened stdio of a process; make it with :func:`open_stdio`.

    It outlives the connection that carries its bytes, which is the business of a
    :class:`~shim.stdio.relay.Relay`.

    Attributes:
        stdin: what to read stdin from; None when the process has none.
        outputs: channel number to sink; with a terminal there is stdout alone.
        terminal: both outputs of the process are one stream.
        logger: the logging program, if there is one.
    """

    def __init__(
        self,
        stdin: Source | None,
        outputs: dict[int, Sink],
        *,
        terminal: bool = False,
        logger: Logger | None = None,
    ) -> None:
        self.stdin = stdin
        self.outputs = outputs
        self.terminal = terminal
        self.logger = logger

    def close_stdin(self) -> None:
        """CloseIO: end stdin once the pending bytes are forwarded. Idempotent."""
        if self.stdin is not None:
            self.stdin.close_write()

    def close(self) -> None:
        """Close every descriptor; readers get their end of file. Idempotent."""
        for sink in self.outputs.values():
            sink.close()
        if self.stdin is not None:
            self.stdin.close()

    async def aclose(self) -> None:
        """Release everything, a logging program included. Idempotent."""
        self.close()
        logger, self.logger = self.logger, None
        if logger is not None:
            await logger.aclose()


async def open_stdio(
    stdin: str,
    stdout: str,
    stderr: str,
    terminal: bool,
    *,
    container_id: str,
    namespace: str,
    record: Record | None = None,
    streams: Streams | None = None,
) -> Stdio:
    """Open what a Create or Exec request names, without waiting for any client.

    Args:
        stdin: FIFO path, ``ttrpc+unix://`` URL of a stream, or empty.
        stdout: FIFO path, ``file://``, ``binary://``, ``binary-v2://`` or
            ``ttrpc+unix://`` URI, or empty to discard.
        stderr: as ``stdout``; ignored with a terminal and for ``file://``, where
            both outputs go to the file of stdout.
        terminal: the process has one stream for both outputs.
        container_id: for the environment of a logging program.
        namespace: containerd's, for the same.
        record: told of the logging program's process.
        streams: the streams that clients open; None for none of their own.

    Raises:
        InvalidArgument: malformed, or a logging program that does not start.
        NotFound: a path that is not there.
        Unimplemented: streams by anything but ttrpc on a unix socket.
        AlreadyExists: a stream that another process has.
        DeadlineExceeded: the logging program does not get ready.
        Internal: a path that can't be opened.
    """
    streams = streams or Streams()
    source_target = parse_stdin(stdin)
    target = parse_target(stdout)
    channels = [(STDOUT, target)]
    if not terminal:
        one_file = isinstance(target, FileTarget)
        channels.append((STDERR, target if one_file else parse_target(stderr)))

    with contextlib.ExitStack() as undo:
        outputs: dict[int, Sink] = {}
        logger: Logger | None = None
        source: Source | None = None
        if source_target is not None:
            source = _open_source(source_target, streams)
            undo.callback(source.close)
        for channel, wanted in channels:
            if not isinstance(wanted, LoggerTarget):
                outputs[channel] = _open_sink(wanted, streams)
                undo.callback(outputs[channel].close)
        loggers = {wanted for _, wanted in channels if isinstance(wanted, LoggerTarget)}
        if len(loggers) > 1:
            raise InvalidArgument("stdio: stdout and stderr must name the same logging program")
        for wanted in loggers:
            logger = await start_logger(
                wanted, container_id=container_id, namespace=namespace, record=record
            )
            pipes = {STDOUT: logger.stdout, STDERR: logger.stderr}
            outputs.update(
                {channel: pipes[channel] for channel, named in channels if named == wanted}
            )
        undo.pop_all()
    return Stdio(source, outputs, terminal=terminal, logger=logger)


def _open_sink(target: PathTarget | FileTarget | StreamTarget | None, streams: Streams) -> Sink:
    if target is None:
        return NullSink()
    if isinstance(target, StreamTarget):
        return streams.sink(target.stream_id)
    with _errors_for(target.path):
        if isinstance(target, PathTarget) and stat.S_ISFIFO(os.stat(target.path).st_mode):
            return PipeSink.open_fifo(target.path)
        return FileSink(target.path)


def _open_source(target: PathTarget | StreamTarget, streams: Streams) -> Source:
    if isinstance(target, StreamTarget):
        return streams.source(target.stream_id)
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
