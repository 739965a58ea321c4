"""What the user sees while a deploy command works: the stage at hand, and how long it took."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

REFRESH = 1.0
"""Seconds between two updates of the running stage's line on a terminal."""


class Progress:
    """Announces stages on a stream and keeps their durations.

    On a terminal the running stage's line shows the seconds passed; elsewhere each stage
    prints one line when it begins and one when it ends.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.durations: list[tuple[str, float]] = []
        self._live = self.stream.isatty()

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time the block under ``title``; a block that raises is shown as failed."""
        begin = time.monotonic()
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(title, begin, done), daemon=True)
        if self._live:
            ticker.start()
        else:
            self._write(f"… {title}\n")
        verdict = "failed"
        try:
            yield
            verdict = "ok"
        finally:
            done.set()
            if self._live:
                ticker.join()
            seconds = time.monotonic() - begin
            self.durations.append((title, seconds))
            start = "\r\x1b[K" if self._live else ""
            mark = "✓" if verdict == "ok" else "✗"
            self._write(f"{start}{mark} {title} ({seconds:.1f} s)\n")

    def note(self, text: str) -> None:
        """Print a line of information."""
        self._write(f"  {text}\n")

    def _tick(self, title: str, begin: float, done: threading.Event) -> None:
        while True:
            self._write(f"\r\x1b[K… {title} {time.monotonic() - begin:.0f} s")
            if done.wait(REFRESH):
                return

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
