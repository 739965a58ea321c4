"""The pod's management socket: HTTP for monitors, CSI drivers and service meshes.

It listens from the VM's start to its end, at a short path, with a link beside the ledger,
where people look for it. Until somebody connects that is all there is: what serves HTTP is
imported with the first connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from shim import sockets
from shim.cleanup import ledger as ledgers
from shim.cleanup.ledger import Entry, Ledger
from shim.cleanup.rollback import Rollback
from shim.log import Log
from shim.ttrpc.server import is_same_user

NAME = "shim-monitor.sock"
"""The socket's name, which is Kata's."""

Serve = Callable[[trio.SocketStream], Awaitable[None]]


def socket_path(state_dir: str, namespace: str, sandbox_id: str) -> str:
    """Where the management socket of a sandbox is."""
    return f"{ledgers.runtime_dir(state_dir, namespace, sandbox_id)}/{NAME}"


class ManagementEndpoint:
    """Listens for a pod.

    Args:
        path: where to bind; its directory exists once the VM does, and is in the ledger.
        ledger: the pod's; the link is made in its directory.
        load: makes what serves a connection, with the first one.
        log: the shim's log.
    """

    def __init__(self, path: str, ledger: Ledger, load: Callable[[], Serve], log: Log) -> None:
        self._path = path
        self._link = f"{os.path.dirname(ledger.path)}/{NAME}"
        self._ledger = ledger
        self._load = load
        self._log = log
        self._serve_connection: Serve | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def open(self, cleanup: Rollback, nursery: trio.Nursery) -> None:
        """Listen, as a task of the nursery, until the rollback stack unwinds.

        A pod runs without it: that it can't be had is a warning in the log.

        Raises:
            Internal: the ledger can't be written.
        """
        entry = self._ledger.add("file", path=self._link)
        try:
            _link(self._path, self._link)
            bound = sockets.listen(self._path)
            listener = trio.socket.from_stdlib_socket(socket.socket(fileno=bound.detach()))
        except Exception as error:
            self._log.warning(f"no management socket at {self._path}: {error}")
            self._remove(entry)
            return
        nursery.start_soon(self._serve, trio.SocketListener(listener))

        async def close() -> None:
            self._scope.cancel()
            await self._ended.wait()
            self._remove(entry)

        cleanup.push("the management socket", close)

    def _remove(self, entry: Entry) -> None:
        for path in (self._link, self._path):
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._ledger.remove(entry)

    async def _serve(self, listener: trio.SocketListener) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await trio.serve_listeners(self._accepted, [listener], handler_nursery=nursery)
        finally:
            listener.socket.close()
            self._ended.set()

    async def _accepted(self, stream: trio.SocketStream) -> None:
        if not is_same_user(stream.socket):
            self._log.warning("refused a connection of another user at the management socket")
            await stream.aclose()
            return
        if self._serve_connection is None:
            self._serve_connection = self._load()
        await self._serve_connection(stream)


def _link(path: str, link: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink(path, link)
