"""A ctr on a pseudo-terminal, as a person would use it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence


class Terminal:
    """A command whose three standard streams are one pseudo-terminal of a given size."""

    def __init__(self, argv: Sequence[str], columns: int, rows: int) -> None:
        self._main, side = os.openpty()
        self._set_size(columns, rows)
        try:
            self.process = subprocess.Popen(
                argv, stdin=side, stdout=side, stderr=side, start_new_session=True
            )
        finally:
            os.close(side)
        self.output = b""

    def resize(self, columns: int, rows: int) -> None:
        """Change the size and tell the command, as a terminal emulator does."""
        self._set_size(columns, rows)
        # The pseudo-terminal is not its controlling terminal, so the kernel doesn't.
        self.process.send_signal(signal.SIGWINCH)

    def write(self, data: bytes) -> None:
        """Type something."""
        os.write(self._main, data)

    def read_until(self, text: bytes, *, timeout: float) -> bytes:
        """Read on until ``text`` occurs; returns what was read up to its end.

        Raises: AssertionError past the deadline (seconds) or at the terminal's end.
        """
        deadline = time.monotonic() + timeout
        while text not in self.output:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._main], [], [], max(left, 0))
            assert ready, f"no {text!r} after {timeout:g} s in {self.output!r}"
            self.output += self._read()
        end = self.output.index(text) + len(text)
        taken, self.output = self.output[:end], self.output[end:]
        return taken

    def wait(self, *, timeout: float) -> int:
        """Wait for the command's end and return its exit code."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(AssertionError):
            while self.process.poll() is None and time.monotonic() < deadline:
                ready, _, _ = select.select([self._main], [], [], 0.1)
                if ready:
                    self.output += self._read()
        return self.process.wait(max(deadline - time.monotonic(), 0.1))

    def close(self) -> None:
        """End the command and give the terminal back."""
        self.process.kill()
        self.process.wait()
        os.close(self._main)

    def _read(self) -> bytes:
        try:
            data = os.read(self._main, 65536)
        except OSError:  # EIO: nobody holds the other side any more
            data = b""
        assert data, f"the terminal ended after {self.output!r}"
        return data

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def open_terminal(argv: Sequence[str], columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    """Run a command on a terminal for the length of the block."""
    terminal = Terminal(argv, columns, rows)
    try:
        yield terminal
    finally:
        terminal.close()
