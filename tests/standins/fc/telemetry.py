"""Log, metrics and the serial console: where a microVM's words go."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any

from tests.standins.fc.fault import Fault

_LEVELS = ("off", "error", "warning", "info", "debug", "trace")
_CREATED_IF_MISSING = (1, 14)
_STDOUT = 1


def open_output(path: str, version: tuple[int, ...], what: str) -> int:
    """Open a file or FIFO to write to, never blocking.

    Raises:
        Fault: it can't be; before 1.14 it must be there.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    if version >= _CREATED_IF_MISSING:
        flags |= os.O_CREAT
    try:
        # A FIFO without a reader is opened for both, as Firecracker opens all.
        return os.open(path, flags, 0o644)
    except OSError:
        pass
    try:
        return os.open(path, (flags & ~os.O_WRONLY) | os.O_RDWR, 0o644)
    except OSError as error:
        raise Fault(f"{what}: {error.strerror} (os error {error.errno})") from error


class Log:
    """Firecracker's log; on standard output until it is told a file.

    Args:
        instance: id of the microVM.
    """

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self.fd = _STDOUT
        self.level = "info"

    def write(self, level: str, text: str) -> None:
        """Write a line, if the level is on."""
        if _LEVELS.index(level.lower()) > _LEVELS.index(self.level):
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = f"{stamp}.{int(now % 1 * 1e9):09} [{self._instance}:main] {text}\n"
        with suppress(OSError):
            os.write(self.fd, line.encode())

    def set_level(self, level: str) -> None:
        """Change the level.

        Raises:
            Fault: there is no such level.
        """
        name = {"warn": "warning"}.get(level.lower(), level.lower())
        if name not in _LEVELS:
            raise Fault(f"Invalid log level: {level}")
        self.level = name


class Metrics:
    """The metrics file: one JSON object a line."""

    def __init__(self) -> None:
        self.fd = -1
        self.counts = {"flush_count": 0, "panic_count": 0}

    def flush(self, extra: dict[str, Any]) -> None:
        """Write what there is."""
        if self.fd < 0:
            return
        self.counts["flush_count"] += 1
        line = {"utc_timestamp_ms": int(time.time() * 1000), "vmm": dict(self.counts), **extra}
        with suppress(OSError):
            os.write(self.fd, json.dumps(line).encode() + b"\n")


class Console:
    """The serial port's output: standard output, or a file."""

    def __init__(self) -> None:
        self.fd = _STDOUT

    def write(self, data: bytes) -> None:
        """Write what the guest wrote."""
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:
                return  # nobody reads the FIFO: the bytes are lost
            except OSError:
                return
