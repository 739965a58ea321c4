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
from collections import deque

import trio
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from protos.containerd.streaming_pb2 import StreamInit
from protos.containerd.transfer_pb2 import Data, WindowUpdate
from shim.errors import AlreadyExists, InvalidArgument, KatapyError, NotFound, Unavailable
from shim.ttrpc.connection import ConnectionClosed
from shim.ttrpc.service import CallContext
from shim.ttrpc.status import TtrpcError
from shim.ttrpc.stream import ServerStream

CHUNK = 32 << 10
"""Bytes of one message; containerd's reader miscounts its window with larger ones."""
WINDOW = 64 << 10
"""Bytes of stdin that a client may send ahead."""
CLOSE_GRACE_S = 2.0
"""Seconds for what a client sent before CloseIO, which came by another connection."""
SETTLE_TIMEOUT_S = 10.0
"""Seconds that a client has to read the rest of an output, and to say so."""

_log = logging.getLogger(__name__)
_MAX_CREDIT = 1 << 30


def _is(packed: PbAny, kind: type[Message]) -> bool:
    """Whether it is such a message; containerd writes the bare name, without a prefix."""
    return packed.type_url.rpartition("/")[2] == kind.DESCRIPTOR.full_name


class _Link:
    """A stream that is open now.

    Attributes:
        stream: the call.
        credit: bytes the client takes.
        granted: bytes it may send.
        ended: set when either side wants no more of it.
        finished: the client has said that it sends no more; else it went away.
        error: what the client did wrong.
    """

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream
        self.credit = 0
        self.granted = 0
        self.ended = trio.Event()
        self.finished = False
        self.error: KatapyError | None = None

    async def send(self, message: Data | WindowUpdate) -> bool:
        """Send; gives False, and ends the link, when the client is gone."""
        packed = PbAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
        try:
            await self.stream.send(packed)
        except (ConnectionClosed, TtrpcError):
            self.ended.set()
            return False
        return True


class _End:
    """Our end of the streams of one id, one after the other.

    Attributes:
        claimed: a process has it.
        reads: it is a stdin.
        link: the stream that is open now.
        incoming: what has arrived and was not read.
        changed: parks those who wait for any of it.
    """

    def __init__(self) -> None:
        self.claimed = False
        self.reads = False
        self.link: _Link | None = None
        self.incoming: deque[bytes] = deque()
        self.changed = trio.lowlevel.ParkingLot()
        self._pending = 0

    def connect(self, link: _Link) -> None:
        """Go on with this stream; a former one has ended, known or not."""
        self.disconnect(self.link)
        self.link = link

    def disconnect(self, link: _Link | None) -> None:
        """Go on without this stream."""
        if link is not None:
            link.ended.set()
            if self.link is link:
                self.link = None
        self.changed.unpark_all()

    def take(self) -> bytes:
        """The next bytes that have arrived, or nothing."""
        if not self.incoming:
            return b""
        data = self.incoming.popleft()
        self._pending -= len(data)
        return data

    async def grant(self) -> None:
        """Let the client send, as far as there is room."""
        link = self.link
        if link is None or not self.reads:
            return
        more = WINDOW - link.granted - self._pending
        if more >= WINDOW // 2:
            link.granted += more
            await link.send(WindowUpdate(update=more))

    async def receive(self, link: _Link) -> None:
        """Take what the client sends until it sends no more."""
        try:
            while (packed := await link.stream.receive()) is not None:
                self._received(link, packed)
                self.changed.unpark_all()
            link.finished = True
        except (ConnectionClosed, TtrpcError):
            pass
        except KatapyError as error:
            link.error = error
        finally:
            link.ended.set()

    def _received(self, link: _Link, packed: PbAny) -> None:
        if _is(packed, WindowUpdate):
            update = WindowUpdate.FromString(packed.value).update
            if not 0 <= update <= _MAX_CREDIT:
                raise InvalidArgument(f"stream: window update of {update} bytes")
            link.credit = min(link.credit + update, _MAX_CREDIT)
        elif _is(packed, Data):
            data = Data.FromString(packed.value).data
            link.granted -= len(data)
            if link.granted < 0:
                raise InvalidArgument("stream: the client sent more than its window allows")
            if data:
                self._pending += len(data)
                self.incoming.append(data)
        else:
            raise InvalidArgument(f"stream: a message of type {packed.type_url!r}")


class StreamSink:
    """An output of a process as a stream; made by :meth:`Streams.sink`."""

    def __init__(self, streams: Streams, stream_id: str, end: _End) -> None:
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

    async def _writable(self) -> _Link | None:
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

    def __init__(self, streams: Streams, stream_id: str, end: _End) -> None:
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


class OneStream:
    """A stream that its client has opened for one copy, which ends with it.

    Made by :meth:`Streams.one`. Unlike stdio it does not wait for a client that went away.
    """

    def __init__(self, streams: Streams, stream_id: str, end: _End, link: _Link) -> None:
        self._streams = streams
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
        self._streams.forget(self._id, self._end)


class Streams:
    """The streams of one shim, by their ids."""

    def __init__(self) -> None:
        self._ends: dict[str, _End] = {}

    async def serve(self, stream: ServerStream, _context: CallContext) -> None:
        """Handle a call of Streaming.Stream for as long as the stream is open.

        Raises:
            InvalidArgument: it does not begin with an id, or breaks the protocol.
        """
        first = await stream.receive()
        if first is None or not _is(first, StreamInit):
            raise InvalidArgument("stream: the first message must be a StreamInit")
        stream_id = StreamInit.FromString(first.value).id
        if not stream_id:
            raise InvalidArgument("stream: no id")
        link = _Link(stream)
        end = self._ends.setdefault(stream_id, _End())
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
        return OneStream(self, stream_id, end, known.link)

    def forget(self, stream_id: str, end: _End) -> None:
        """Give a stream back; a client that has it open gets its end. Idempotent."""
        self._drop(stream_id, end)
        end.disconnect(end.link)

    def close(self) -> None:
        """End all of them."""
        for stream_id, end in list(self._ends.items()):
            self.forget(stream_id, end)

    def _claim(self, stream_id: str) -> _End:
        end = self._ends.setdefault(stream_id, _End())
        if end.claimed:
            raise AlreadyExists(f"stdio: stream {stream_id!r} belongs to another process")
        end.claimed = True
        return end

    def _drop(self, stream_id: str, end: _End) -> None:
        if self._ends.get(stream_id) is end:
            del self._ends[stream_id]
