"""Passes vhost-user messages on between QEMU and a daemon, and claims dirty logging.

QEMU saves a VM only when its vhost daemons could log the pages they write. Here devices stand
still before anything is saved, so the log is never asked for, and a daemon that has none does.

Source: QEMU ``docs/interop/vhost-user``.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

_HEADER = struct.Struct("<III")  # request, flags, size
_VALUE = struct.Struct("<Q")
_FDS_MAX = 32
_GET_FEATURES, _SET_FEATURES = 1, 2
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES = 15, 16
_LOG_ALL = 1 << 26
_LOG_SHMFD = 1 << 1


def claimed(request: int, value: int) -> int:
    """Return what QEMU is told for a daemon's answer to a request."""
    return value | {_GET_FEATURES: _LOG_ALL, _GET_PROTOCOL_FEATURES: _LOG_SHMFD}.get(request, 0)


def admitted(request: int, value: int) -> int:
    """Return what the daemon is told for a request of QEMU's."""
    return value & ~{_SET_FEATURES: _LOG_ALL, _SET_PROTOCOL_FEATURES: _LOG_SHMFD}.get(request, 0)


class Relay:
    """Runs in threads of its own: QEMU waits for answers while it is itself waited for.

    Args:
        daemon: the socket that leads to the daemon.
    """

    def __init__(self, daemon: socket.socket) -> None:
        self.front, self._ours = socket.socketpair()
        self._daemon = daemon
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; the daemon is connected."""
        for source, target, change in (
            (self._ours, self._daemon, admitted),
            (self._daemon, self._ours, claimed),
        ):
            arguments = (source, target, change)
            thread = threading.Thread(target=self._pass_on, args=arguments, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _pass_on(
        self, source: socket.socket, target: socket.socket, change: Callable[[int, int], int]
    ) -> None:
        try:
            while True:
                header, fds, _, _ = socket.recv_fds(source, _HEADER.size, _FDS_MAX)
                header += _rest(source, _HEADER.size - len(header))
                request, _, size = _HEADER.unpack(header)
                payload = _rest(source, size)
                if size == _VALUE.size:
                    payload = _VALUE.pack(change(request, *_VALUE.unpack(payload)))
                socket.send_fds(target, [header + payload], fds)
                for fd in fds:
                    os.close(fd)
        except (OSError, EOFError):
            self._hang_up()

    def _hang_up(self) -> None:
        for sock in (self._ours, self._daemon):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it; both sides see the other hang up."""
        self._hang_up()
        for thread in self._threads:
            thread.join()
        for sock in (self.front, self._ours, self._daemon):
            sock.close()


def _rest(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
