"""One thread, one loop, one request at a time: how both VMMs serve their socket."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.standins.http_dialect import (
    SERVER_FULL,
    BadHttp,
    Parser,
    Request,
    Response,
    low_level_error,
)

CONNECTIONS_MAX = 10
_READ_SIZE = 1024
_FDS_MAX = 253

Handler = Callable[[Request], Response]


class Loop:
    """Calls back when a descriptor is readable, or a time has come."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._kept: list[Any] = []
        self.exit_code: int | None = None

    def watch(self, fd: Any, callback: Callable[[], None]) -> None:
        """Call back whenever ``fd`` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def forget(self, fd: Any) -> None:
        """Stop watching a descriptor."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def keep(self, thing: Any) -> None:
        """Hold on to something for as long as the loop is there."""
        self._kept.append(thing)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, later."""
        self._timers.append((time.monotonic() + seconds, callback))

    def stop(self, exit_code: int) -> None:
        """End :meth:`run` when the present callback is done; the first code counts."""
        if self.exit_code is None:
            self.exit_code = exit_code

    def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        while self.exit_code is None:
            now = time.monotonic()
            due = [entry for entry in self._timers if entry[0] <= now]
            self._timers = [entry for entry in self._timers if entry[0] > now]
            for _, callback in due:
                callback()
            if self.exit_code is not None:
                break
            wait = min((at - now for at, _ in self._timers), default=None)
            for key, _ in self._selector.select(wait if not due else 0):
                if key.fd in self._selector.get_map() and self.exit_code is None:
                    key.data()
        return self.exit_code


class HttpServer:
    """Serves one listening unix socket.

    Args:
        loop: what it runs on.
        listener: bound and listening.
        handler: answers a request.
        name: for the ``Server`` header.
        payload_max: largest body in bytes.
    """

    def __init__(
        self, loop: Loop, listener: socket.socket, handler: Handler, name: str, payload_max: int
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._handler = handler
        self._name = name
        self._payload_max = payload_max
        self._connections: set[_Connection] = set()
        loop.watch(listener, self._accept)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        if len(self._connections) == CONNECTIONS_MAX:
            with suppress(OSError):
                sock.sendall(SERVER_FULL)
            sock.close()
            return
        connection = _Connection(sock, self._payload_max)
        self._connections.add(connection)
        self._loop.watch(sock, lambda: self._readable(connection))

    def _readable(self, connection: _Connection) -> None:
        try:
            data = connection.receive()
            if not data:
                raise ConnectionError
            try:
                for found in connection.take(data):
                    response = found if isinstance(found, Response) else self._answer(found)
                    connection.sock.sendall(response.encode(self._name))
            except BadHttp as error:
                connection.sock.sendall(low_level_error(error).encode(self._name))
        except OSError:
            self._loop.forget(connection.sock)
            connection.close()
            self._connections.discard(connection)

    def _answer(self, request: Request) -> Response:
        try:
            return self._handler(request)
        finally:
            for fd in request.fds:  # those that a handler keeps, it takes off the list
                os.close(fd)


class _Connection:
    """One client."""

    def __init__(self, sock: socket.socket, payload_max: int) -> None:
        self.sock = sock
        self._parser = Parser(payload_max)
        self._fds: list[int] = []

    def receive(self) -> bytes:
        """Read what is there; descriptors are kept for the next complete request."""
        data, fds, _, _ = socket.recv_fds(self.sock, _READ_SIZE, _FDS_MAX)
        self._fds += fds
        return data

    def take(self, data: bytes) -> deque[Request | Response]:
        """Return the requests that are complete now, the first with all the descriptors."""
        found = deque(self._parser.feed(data))
        for item in found:
            if isinstance(item, Request):
                item.fds, self._fds = self._fds, []
                break
        return found

    def close(self) -> None:
        """Close it, and descriptors nobody asked for."""
        self.sock.close()
        for fd in self._fds:
            os.close(fd)


def listen(path: Path | str) -> socket.socket:
    """Bind a unix socket and listen on it.

    Raises:
        OSError: the path exists, or can't be.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(os.fspath(path))
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock
