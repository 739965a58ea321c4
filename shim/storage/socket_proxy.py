"""A unix socket of the host, reachable at a path in the guest.

The agent listens there; each connection it accepts becomes a stream of our extension,
whose other end is a connection to the host's socket. Only bytes travel: a datagram
socket or a passed descriptor has no way through a VM.

Source: protos/katapy/extension.proto; unix(7).
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from protos.katapy.extension_pb2 import ConnectionFrame, ListenSocketRequest, SocketAccepted
from shim.errors import Unavailable
from shim.guest_connection import BROKEN, SERVICE, WINDOW, Relay, give_up

if TYPE_CHECKING:
    from shim.storage.host_socket import HostSocket
    from shim.ttrpc.client import Client
    from shim.ttrpc.stream import ClientStream

CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 512
"""At a time: the guest decides how many there are, we have descriptors."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Owner and permissions of the socket in the guest."""

    uid: int
    gid: int
    mode: int


class SocketProxy:
    """One proxied socket.

    Args:
        client: the connection to the agent.
        host: the socket on the host; connected anew for each connection, so a
            server that is started again is found.
        guest_path: where the guest listens; at most 107 bytes.
        owner: whose the guest's socket is.
        cover: the host's socket as the guest sees it, to be covered by that one; "" for none.
    """

    def __init__(
        self, client: Client, host: HostSocket, guest_path: str, owner: Owner, cover: str = ""
    ) -> None:
        self._client = client
        self._host = host
        self._guest_path = guest_path
        self._owner = owner
        self._cover = cover
        self._stream: ClientStream | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once the guest listens.

        Raises:
            Unavailable: the guest doesn't listen (any more).
        """
        request = ListenSocketRequest(
            path=self._guest_path,
            mode=self._owner.mode,
            uid=self._owner.uid,
            gid=self._owner.gid,
            cover=self._cover,
        )
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with self._client.stream(SERVICE, "ListenSocket") as stream:
                    try:
                        await stream.send(request.SerializeToString())
                        self._stream = stream
                        while (data := await stream.receive()) is not None:
                            number = SocketAccepted.FromString(data).connection
                            if not number:
                                task_status.started()
                            elif len(nursery.child_tasks) < CONNECTIONS_MAX:
                                nursery.start_soon(self._serve, number)
                            else:  # the guest closes what is not taken
                                _log.warning("socket %s: too many connections", self._host.path)
                    finally:
                        self._stream = None
                        give_up(stream)
            except BROKEN as error:
                failure = error
            nursery.cancel_scope.cancel()
        raise Unavailable(f"socket {self._host.path} in the guest: {failure or 'it has ended'}")

    async def cover_again(self) -> None:
        """Cover the host's socket anew: another one has taken its place."""
        if self._stream is not None:
            with contextlib.suppress(*BROKEN):  # which `run` is told too
                await self._stream.send(ListenSocketRequest().SerializeToString())

    async def _serve(self, number: int) -> None:
        try:
            async with self._client.stream(SERVICE, "Connection") as stream:
                # Taken in any case: one that leads nowhere ends for the guest at once.
                first = ConnectionFrame(connection=number, credit=WINDOW)
                await stream.send(first.SerializeToString())
                try:
                    host = await self._connect()
                    if host is not None:
                        async with host:
                            await Relay(stream, host).run()
                finally:
                    give_up(stream)
        except* BROKEN as error:  # of a relay's task it comes in a group
            reason = error.exceptions[0]
            _log.debug("socket %s: a connection broke: %s", self._host.path, reason)

    async def _connect(self) -> trio.SocketStream | None:
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                return await self._host.connect()
        except (OSError, trio.TooSlowError) as error:
            _log.warning("socket %s: nobody answers on the host: %s", self._host.path, error)
            return None
