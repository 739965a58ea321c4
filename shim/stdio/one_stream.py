"""A stream of a client that carries one copy, such as an archive, and ends with it."""

from __future__ import annotations

from collections.abc import Callable

from protos.containerd.transfer_pb2 import Data
from shim.errors import Unavailable
from shim.stdio.stream_end import CHUNK, Link, StreamEnd


class OneStream:
    """A stream that its client has opened for one copy, which ends with it.

    Made by :meth:`shim.stdio.streaming.Streams.one`. Unlike stdio it does not wait for a
    client that went away.
    """

    def __init__(
        self, stream_id: str, end: StreamEnd, link: Link, forget: Callable[[str, StreamEnd], None]
    ) -> None:
        self._forget = forget
        self._id = stream_id
        self._end = end
        self._link = link

    async def read(self) -> bytes:
        """Return the next bytes, or nothing at the end.

        Raises:
            Unavailable: the client went away before it.
            InvalidArgument: it broke the protocol.
        """
        self._end.reads = True
        while True:
            await self._end.grant()
            if data := self._end.take():
                return data
            if self._link.finished:
                return b""
            self._raise_if_gone()
            await self._end.changed.park()

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``. Raises as :meth:`read`."""
        view = memoryview(data)
        while view:
            self._raise_if_gone()
            if not self._link.credit:
                await self._end.changed.park()
                continue
            chunk = view[: min(CHUNK, self._link.credit)]
            self._link.credit -= len(chunk)
            await self._link.send(Data(data=bytes(chunk)))
            view = view[len(chunk) :]

    def _raise_if_gone(self) -> None:
        if self._link.error is not None:
            raise self._link.error
        if self._link.ended.is_set() or self._end.link is not self._link:
            raise Unavailable(f"stream {self._id!r} was given up by its client")

    def close(self) -> None:
        """End it behind what was sent. Idempotent."""
        self._forget(self._id, self._end)
