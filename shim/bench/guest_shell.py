"""A shell in a guest, which runs lines and says when each has ended."""

from __future__ import annotations

import socket
import time

from shim.bench.deadline import Deadline
from shim.errors import DeadlineExceeded, Internal

LOOP = 'while read -r line; do eval "$line" 2>&1 < /dev/null; echo "--end $?"; done'
"""What the shell has to run, its standard input and output being our connection."""

_END = "--end "
_TIMEOUT = 120.0


class GuestShell:
    """Our end of it.

    Args:
        name: whose it is, for errors.
        connection: to a shell that runs :data:`LOOP`; owned by the caller.
        deadline: of the whole benchmark.
    """

    def __init__(self, name: str, connection: socket.socket, deadline: Deadline) -> None:
        self._name = name
        self._connection = connection
        self._deadline = deadline
        self._buffer = b""

    def run(self, line: str, timeout: float = _TIMEOUT) -> str:
        """Run a line and return what it printed.

        Raises:
            Internal: it failed, or the shell is gone.
            DeadlineExceeded: it took longer than ``timeout`` seconds.
        """
        self._connection.sendall(f"{line}\n".encode())
        return self.answer(line, timeout)

    def answer(self, what: str, timeout: float) -> str:
        """Return what is printed up to the end of a line that was sent.

        Raises:
            Internal, DeadlineExceeded: as :meth:`run`.
        """
        end = time.monotonic() + self._deadline.limit(timeout)
        said: list[str] = []
        while not (line := self._line(what, end)).startswith(_END):
            said.append(line)
        output = "\n".join(said)
        if line != f"{_END}0":
            status = line.removeprefix(_END)
            raise Internal(f"{self._name}: {what}: exit status {status}: {output}")
        return output

    def _line(self, what: str, end: float) -> str:
        while b"\n" not in self._buffer:
            self._connection.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                raise DeadlineExceeded(f"{self._name}: {what}: not done in time") from None
            if not data:
                raise Internal(f"{self._name}: it ended during {what}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")
