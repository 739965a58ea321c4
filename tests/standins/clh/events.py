"""The event monitor: a stream of JSON objects."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress


class Monitor:
    """Writes events to a file, and never waits for its reader.

    What does not fit is lost, so a full pipe can cut an event in half.

    Args:
        fd: where to; -1 for nowhere.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = time.monotonic()
        if fd >= 0:
            os.set_blocking(fd, False)

    def event(self, source: str, event: str, properties: dict[str, str] | None = None) -> None:
        """Write an event."""
        if self._fd < 0:
            return
        elapsed = time.monotonic() - self._start
        record = {
            "timestamp": {"secs": int(elapsed), "nanos": int(elapsed % 1 * 1e9)},
            "source": source,
            "event": event,
            "properties": properties,
        }
        for data in (json.dumps(record, indent=2).encode(), b"\n\n"):
            rest = data
            with suppress(OSError):
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
