"""CRI's streaming I/O: a process's stdio over streams that its client opens to the shim.

A client opens one stream for each of stdin, stdout and stderr, says its id in the first
message and names the same id in Create or Exec. Either may come first, and a client that
was away (a restart of containerd) opens the stream again. As with a FIFO, output waits
for its reader as long as the process runs, and a reader that leaves takes nothing along.

Source: containerd api/services/streaming/v1, core/transfer/streaming (windows of both
directions), internal/cri/io (``io_type = "streaming"``).
"""

from __future__ import annotations

import logging
import math

import trio
from google.protobuf.any_pb2 import Any as PbAny

from protos.containerd.streaming_pb2 import StreamInit
from protos.containerd.transfer_pb2 import Data
from shim.errors import AlreadyExists, InvalidArgument, NotFound
from shim.stdio.one_stream import OneStream
from shim.stdio.stream_end import CHUNK, Link, StreamEnd, is_message
from shim.ttrpc.service import CallContext
from shim.ttrpc.stream import ServerStream

CLOSE_GRACE_S = 2.0
"""Seconds for what a client sent before CloseIO, which came by another connection."""
SETTLE_TIMEOUT_S = 10.0
"""Seconds that a client has to read the rest of an output, and to say so."""

_log = logging.getLogger(__name__)


class StreamSink:
    """An output of a process as a stream; made by :meth:`Streams.sink`."""

    def __init__(self, streams: Streams, stream_id: str, end: StreamEnd) -> None:
        self._streams = streams
        self._id = stream_id
        self._end = end
        self._released = False
        self._closed = False

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``; once released, drop it when no client has the stream open."""
        view = memoryview(data)
        while view:
            link = await self._writable()
            if link is None:
                return
            chunk = view[: min(CHUNK, link.credit)]
            link.credit -= len(chunk)
            if await link.send(Data(data=bytes(chunk))):
                view = view[len(chunk) :]
            else:
                self._end.disconnect(link)

    async def _writable(self) -> Link | None:
        while not self._closed:
            link = self._end.link
            if link is not None and link.credit:
                return link
            if link is None and self._released:
                return None
            await self._end.changed.park()
        return None

    async def settle(self) -> None:
        """End the stream and wait until the client has read to its end.

        containerd gives up reading as soon as it knows of the process's exit, which must
        therefore not be told before.
        """
        link = self._end.link
        if link is None:
            return
        link.stream.close_send()
        with trio.move_on_after(SETTLE_TIMEOUT_S) as scope:
            await link.ended.wait()
        if scope.cancelled_caught:
            _log.warning("stdio: stream %s was not read to its end", self._id)

    def release(self) -> None:
        """From now on a client that is away wants no data."""
        self._released = True
        self._end.changed.unpark_all()

    def close(self) -> None:
        """End the stream behind what was sent. Idempotent."""
        self._closed = True
        self._streams.forget(self._id, self._end)


class StreamSource:
    """The stdin of a process as a stream; made by :meth:`Streams.source`.

    A client that leaves is no end of file: that comes from CloseIO alone.
    """

    def __init__(self, streams: Streams, stream_id: str, end: StreamEnd) -> None:
        self._streams = streams
        self._id = stream_id
        self._end = end
        self._closing = False
        self._closed = False

    async def read(self) -> bytes:
        """Return the next bytes, or nothing at the end."""
        end = self._end
        while not self._closed:
            await end.grant()
            if data := end.take():
                return data
            if self._closing and end.link is None:
                break
            with trio.move_on_after(CLOSE_GRACE_S if self._closing else math.inf) as scope:
                await end.changed.park()
            if scope.cancelled_caught and not end.incoming:
                break
        return b""

    def close_write(self) -> None:
        """End stdin after the bytes that the client has sent so far. Idempotent."""
        self._closing = True
        self._end.changed.unpark_all()

    def close(self) -> None:
        """End the stream. Idempotent."""
        self._closed = True
        self._streams.forget(self._id, self._end)


class Streams:
    """The streams of one shim, by their ids."""

    def __init__(self) -> None:
        self._ends: dict[str, StreamEnd] = {}

    async def serve(self, stream: ServerStream, _context: CallContext) -> None:
        """Handle a call of Streaming.Stream for as long as the stream is open.

        Raises:
            InvalidArgument: it does not begin with an id, or breaks the protocol.
        """
        first = await stream.receive()
        if first is None or not is_message(first, StreamInit):
            raise InvalidArgument("stream: the first message must be a StreamInit")
        stream_id = StreamInit.FromString(first.value).id
        if not stream_id:
            raise InvalidArgument("stream: no id")
        link = Link(stream)
        end = self._ends.setdefault(stream_id, StreamEnd())
        end.connect(link)
        try:
            await stream.send(PbAny())  # any answer says that it is open
            await end.grant()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end.receive, link)
                await link.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            end.disconnect(link)
            if not end.claimed and end.link is None:
                self._drop(stream_id, end)
        if link.error is not None:
            raise link.error

    def sink(self, stream_id: str) -> StreamSink:
        """Take a stream for an output.

        Raises:
            AlreadyExists: another process has it.
        """
        return StreamSink(self, stream_id, self._claim(stream_id))

    def source(self, stream_id: str) -> StreamSource:
        """Take a stream for a stdin. Raises as :meth:`sink`."""
        end = self._claim(stream_id)
        end.reads = True
        return StreamSource(self, stream_id, end)

    def one(self, stream_id: str) -> OneStream:
        """Take a stream that is open now.

        Raises:
            NotFound: it is not.
            AlreadyExists: it is taken.
        """
        known = self._ends.get(stream_id)
        if known is None or known.link is None:
            raise NotFound(f"stream {stream_id!r} is not open")
        end = self._claim(stream_id)
        return OneStream(stream_id, end, known.link, self.forget)

    def forget(self, stream_id: str, end: StreamEnd) -> None:
        """Give a stream back; a client that has it open gets its end. Idempotent."""
        self._drop(stream_id, end)
        end.disconnect(end.link)

    def close(self) -> None:
        """End all of them."""
        for stream_id, end in list(self._ends.items()):
            self.forget(stream_id, end)

    def _claim(self, stream_id: str) -> StreamEnd:
        end = self._ends.setdefault(stream_id, StreamEnd())
        if end.claimed:
            raise AlreadyExists(f"stdio: stream {stream_id!r} belongs to another process")
        end.claimed = True
        return end

    def _drop(self, stream_id: str, end: StreamEnd) -> None:
        if self._ends.get(stream_id) is end:
            del self._ends[stream_id]
