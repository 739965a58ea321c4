"""The shim's end of the streams that clients open to it, one message after the other.

Source: containerd api/services/streaming/v1, core/transfer/streaming (windows of both
directions).
"""

from __future__ import annotations

from collections import deque

import trio
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from protos.containerd.transfer_pb2 import Data, WindowUpdate
from shim.errors import InvalidArgument, KatapyError
from shim.ttrpc.connection import ConnectionClosed
from shim.ttrpc.status import TtrpcError
from shim.ttrpc.stream import ServerStream

CHUNK = 32 << 10
"""Bytes of one message; containerd's reader miscounts its window with larger ones."""
WINDOW = 64 << 10
"""Bytes that a client may send ahead."""
_MAX_CREDIT = 1 << 30


def is_message(packed: PbAny, kind: type[Message]) -> bool:
    """Whether it is such a message; containerd writes the bare name, without a prefix."""
    return packed.type_url.rpartition("/")[2] == kind.DESCRIPTOR.full_name


class Link:
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


class StreamEnd:
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
        self.link: Link | None = None
        self.incoming: deque[bytes] = deque()
        self.changed = trio.lowlevel.ParkingLot()
        self._pending = 0

    def connect(self, link: Link) -> None:
        """Go on with this stream; a former one has ended, known or not."""
        self.disconnect(self.link)
        self.link = link

    def disconnect(self, link: Link | None) -> None:
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

    async def receive(self, link: Link) -> None:
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

    def _received(self, link: Link, packed: PbAny) -> None:
        if is_message(packed, WindowUpdate):
            update = WindowUpdate.FromString(packed.value).update
            if not 0 <= update <= _MAX_CREDIT:
                raise InvalidArgument(f"stream: window update of {update} bytes")
            link.credit = min(link.credit + update, _MAX_CREDIT)
        elif is_message(packed, Data):
            data = Data.FromString(packed.value).data
            link.granted -= len(data)
            if link.granted < 0:
                raise InvalidArgument("stream: the client sent more than its window allows")
            if data:
                self._pending += len(data)
                self.incoming.append(data)
        else:
            raise InvalidArgument(f"stream: a message of type {packed.type_url!r}")
