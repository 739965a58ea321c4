"""The shim's log: lines to the bundle's FIFO, which containerd copies into its own log.

Never blocks and never fails: when the daemon is away the FIFO fills up, lines are
dropped and counted, and the next line that gets through tells how many. Not the
logging package, which takes as long to import as the whole of ``start``.

Source: the text form of containerd's log lines (logrus TextFormatter).
"""

from __future__ import annotations

import os
import stat
import time

DEBUG = 10
INFO = 20
WARNING = 30
ERROR = 40

_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}
_LINE_MAX = 4096  # PIPE_BUF: the kernel takes such a line as a whole or not at all
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")


def open_fifo(path: str) -> int:
    """Open a bundle's ``log`` FIFO for writing without waiting for a reader.

    Read-write, so that a daemon that goes away causes no EPIPE.

    Returns:
        The file descriptor, or -1 when there is no such FIFO.
    """
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            return -1
        return os.open(path, flags)
    except OSError:
        return -1


class Log:
    """Writes log lines to the FIFO and, when given, to a file.

    Args:
        fifo_fd: from open_fifo; owned by the object, -1 for none.
        level: the least level to write.
        fields: key and value pairs every line ends with.
        file: path of a file that gets all lines too, "" for none.
    """

    def __init__(
        self, fifo_fd: int, level: int = INFO, fields: dict[str, str] | None = None, file: str = ""
    ) -> None:
        self.level = level
        self.dropped = 0
        self._fifo_fd = fifo_fd
        self._suffix = _pairs(fields or {})
        self._file_fd = -1
        if file:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file_fd = os.open(file, flags, 0o600)

    def debug(self, text: str, /, **fields: object) -> None:
        """Log what only a developer wants to know."""
        self.write(DEBUG, text, **fields)

    def info(self, text: str, /, **fields: object) -> None:
        """Log a milestone."""
        self.write(INFO, text, **fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log something an administrator should look at."""
        self.write(WARNING, text, **fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Log a failure."""
        self.write(ERROR, text, **fields)

    def write(self, level: int, text: str, /, **fields: object) -> None:
        """Write one line of ``level``; fields become key=value pairs."""
        if level < self.level:
            return
        if self.dropped:
            fields["dropped"] = self.dropped
        line = render(level, text, _pairs(fields) + self._suffix)
        if self._fifo_fd >= 0:
            if _write(self._fifo_fd, line):
                self.dropped = 0
            else:
                self.dropped += 1
        if self._file_fd >= 0:
            _write(self._file_fd, line)

    def close(self) -> None:
        """Close what the object opened."""
        for fd in (self._fifo_fd, self._file_fd):
            if fd >= 0:
                os.close(fd)
        self._fifo_fd = self._file_fd = -1


def render(level: int, text: str, pairs: str) -> bytes:
    """One line in containerd's text form, at most PIPE_BUF bytes."""
    nanos = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanos // 10**9))
    stamp = f"{seconds}.{nanos % 10**9:09d}Z"
    head = f'time="{stamp}" level={_NAMES[level]} msg={_quote(text)}'
    line = (head + pairs).encode("utf-8", "backslashreplace")
    if len(line) >= _LINE_MAX:
        line = line[: _LINE_MAX - 4].decode(errors="ignore").encode() + b"..."
    return line + b"\n"


def _pairs(fields: dict[str, str] | dict[str, object]) -> str:
    return "".join(f" {name}={_quote(str(value))}" for name, value in fields.items())


def _quote(text: str) -> str:
    if text and _PLAIN.issuperset(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else _escape(c) for c in escaped)
    return f'"{escaped}"'


def _escape(character: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"\\x{ord(character):02x}")


def _write(fd: int, line: bytes) -> bool:
    try:
        return os.write(fd, line) == len(line)
    except OSError:  # full, or the disk is: nothing a log could do about it
        return False
