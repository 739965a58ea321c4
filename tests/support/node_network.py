"""A network namespace of the tests' own, where their daemon and its pod networks live."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_TIMEOUT = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class NetworkNamespace:
    """A named network namespace, as ``ip netns`` makes them."""

    name: str

    @property
    def path(self) -> Path:
        """Where it is bound to."""
        return FOLDER / self.name

    def command(self, *words: str | Path) -> list[str]:
        """The argument vector that runs ``words`` in it; the process stays the same one."""
        return ["nsenter", f"--net={self.path}", *map(str, words)]

    def output(self, *words: str) -> str:
        """What a program says in it. Raises: CalledProcessError."""
        done = subprocess.run(
            self.command(*words), check=True, capture_output=True, text=True, timeout=_TIMEOUT
        )
        return done.stdout

    def connect(self, host: str, port: int, *, timeout: float) -> socket.socket:
        """A TCP connection from within it; a socket stays where it was made.

        Raises: OSError.
        """

        def make() -> socket.socket:
            return socket.create_connection((host, port), timeout)

        return self._inside(make)

    def _inside(self, work: Callable[[], T]) -> T:
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with open(self.path) as handle:
                    if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns {self.path}")
                results.append(work())
            except BaseException as error:  # handed to the caller
                errors.append(error)

        # A thread that has changed its namespace is good for nothing else.
        thread = threading.Thread(target=run, name=f"in {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


@contextlib.contextmanager
def open_netns(name: str) -> Iterator[NetworkNamespace]:
    """Make a network namespace with its loopback device up, for the length of the block."""
    FOLDER.mkdir(exist_ok=True)
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=_TIMEOUT)
    namespace = NetworkNamespace(name)
    try:
        namespace.output("ip", "link", "set", "lo", "up")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=_TIMEOUT)
        assert not os.path.exists(namespace.path)
