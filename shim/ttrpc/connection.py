"""Stream tables and protocol rules of both ends of a ttrpc connection. Sans-IO.

Bytes from the peer go into ``feed``, which gives events. Calls put frames into an
output queue that the driver takes with ``take_output`` and writes in order, best
once per wake-up.

Source: ttrpc PROTOCOL.md.
"""

from __future__ import annotations

from shim.ttrpc import status
from shim.ttrpc.framing import (
    DATA,
    FLAG_NO_DATA,
    FLAG_REMOTE_CLOSED,
    FLAG_REMOTE_OPEN,
    HEADER_SIZE,
    MESSAGE_MAX,
    REQUEST,
    RESPONSE,
    FrameDecoder,
    encode_header,
)
from shim.ttrpc.messages import (
    DecodeError,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.ttrpc.framing import Buffer
    from shim.ttrpc.messages import Metadata

_JOIN_MAX = 4096  # payloads up to this size are copied behind their header
_STREAM_ID_MAX = 0xFFFF_FFFF
_CLOSE = FLAG_REMOTE_CLOSED | FLAG_NO_DATA


class ConnectionClosed(status.TtrpcError):
    """The connection ended before the call did."""

    def __init__(self) -> None:
        super().__init__(status.UNAVAILABLE, "ttrpc: closed")


class CallReceived:
    """Server: a call begins. ``flags`` are those of the request frame."""

    __slots__ = ("flags", "request", "stream_id")

    def __init__(self, stream_id: int, request: Request, flags: int) -> None:
        self.stream_id = stream_id
        self.request = request
        self.flags = flags


class DataReceived:
    """A message arrived on a stream."""

    __slots__ = ("payload", "stream_id")

    def __init__(self, stream_id: int, payload: bytes) -> None:
        self.stream_id = stream_id
        self.payload = payload


class RemoteClosed:
    """The peer sends no more messages on a stream."""

    __slots__ = ("stream_id",)

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


class ResponseReceived:
    """Client: the call is over, with a result or an error."""

    __slots__ = ("response", "stream_id")

    def __init__(self, stream_id: int, response: Response) -> None:
        self.stream_id = stream_id
        self.response = response


class StreamAborted:
    """Server: the peer broke a rule of this stream and has been told; the call is over."""

    __slots__ = ("code", "message", "stream_id")

    def __init__(self, stream_id: int, code: int, message: str) -> None:
        self.stream_id = stream_id
        self.code = code
        self.message = message


class _Connection:
    """What both ends share: the decoder and the output queue."""

    __slots__ = ("_decoder", "_output", "output_size")

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._output: list[Buffer] = []
        self.output_size = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the peer is between two frames."""
        return self._decoder.at_boundary

    def take_output(self) -> list[Buffer]:
        """Give the queued buffers, to be written in this order, and empty the queue."""
        output, self._output = self._output, []
        self.output_size = 0
        return output

    def _send(self, stream_id: int, kind: int, flags: int, payload: bytes) -> None:
        header = encode_header(len(payload), stream_id, kind, flags)
        self.output_size += HEADER_SIZE + len(payload)
        if len(payload) <= _JOIN_MAX:
            self._output.append(header + payload)
        else:
            self._output += (header, payload)

    def _send_parts(self, stream_id: int, parts: tuple[Buffer, ...]) -> None:
        """Queue one data frame whose payload is the parts, without joining large ones."""
        size = sum(map(len, parts))
        if size > MESSAGE_MAX:
            raise _too_large(size)
        if size <= _JOIN_MAX:
            self._send(stream_id, DATA, 0, b"".join(parts))
        else:
            self._output.append(encode_header(size, stream_id, DATA, 0))
            self._output += parts
            self.output_size += HEADER_SIZE + size


def _too_large(size: int) -> status.TtrpcError:
    return status.TtrpcError(
        status.RESOURCE_EXHAUSTED, f"message of {size} bytes exceeds the maximum of {MESSAGE_MAX}"
    )


class ServerConnection(_Connection):
    """The server's end. A call is active from CallReceived until it is answered.

    Each call gets exactly one of ``respond``, ``fail`` and ``end``; whatever comes
    after that, and on calls the peer has aborted, is dropped.
    """

    __slots__ = ("_closed", "_last_id", "_open")

    def __init__(self) -> None:
        super().__init__()
        self._last_id = 0
        self._open: dict[int, bool] = {}  # active calls: whether the client may send data
        self._closed: set[int] = set()  # those whose client was told that we send no more

    @property
    def active(self) -> int:
        """The number of calls without an answer."""
        return len(self._open)

    def is_active(self, stream_id: int) -> bool:
        """Whether the call still waits for its answer."""
        return stream_id in self._open

    def feed(
        self, data: Buffer
    ) -> list[CallReceived | DataReceived | RemoteClosed | StreamAborted]:
        """Take bytes from the client; give what they mean. Refusals are queued as output."""
        events: list[CallReceived | DataReceived | RemoteClosed | StreamAborted] = []
        for stream_id, kind, flags, payload in self._decoder.feed(data):
            if kind == REQUEST:
                call = self._request(stream_id, flags, payload)
                if call is not None:
                    events.append(call)
            elif kind == DATA:
                self._data(stream_id, flags, payload, events)
            # Other types are ignored, as the protocol demands.
        return events

    def respond(self, stream_id: int, payload: bytes) -> None:
        """Answer a call with one result; one that is too large becomes RESOURCE_EXHAUSTED."""
        if self._open.pop(stream_id, None) is None:
            return
        message = encode_response(status.OK, "", payload)
        if len(message) > MESSAGE_MAX:
            error = _too_large(len(message))
            message = encode_response(error.code, error.message, b"")
        self._send(stream_id, RESPONSE, 0, message)

    def fail(self, stream_id: int, code: int, message: str) -> None:
        """Answer a call with a status other than OK."""
        if self._open.pop(stream_id, None) is not None and not self._was_closed(stream_id):
            self._refuse(stream_id, code, message)

    def send_data(self, stream_id: int, *parts: Buffer) -> None:
        """Send one message, given in one or more parts, on a stream.

        Raises:
            TtrpcError: RESOURCE_EXHAUSTED, the message is too large; the stream lives on.
        """
        if stream_id in self._open and stream_id not in self._closed:
            self._send_parts(stream_id, parts)

    def close_send(self, stream_id: int) -> None:
        """Tell the client that nothing more comes on a stream; receiving goes on."""
        if stream_id in self._open and stream_id not in self._closed:
            self._closed.add(stream_id)
            self._send(stream_id, DATA, _CLOSE, b"")

    def end(self, stream_id: int) -> None:
        """End a stream with success."""
        if self._open.pop(stream_id, None) is not None and not self._was_closed(stream_id):
            self._send(stream_id, DATA, _CLOSE, b"")

    def abandon_all(self) -> None:
        """Drop every answer from now on: the client is gone."""
        self._open.clear()
        self._closed.clear()

    def _was_closed(self, stream_id: int) -> bool:
        """Whether the client knows the end already; asked once, at the end."""
        known = stream_id in self._closed
        self._closed.discard(stream_id)
        return known

    def _refuse(self, stream_id: int, code: int, message: str) -> None:
        # The text may quote what the peer sent: keep the frame far below the limit.
        self._send(stream_id, RESPONSE, 0, encode_response(code, message[: MESSAGE_MAX >> 4], b""))

    def _request(self, stream_id: int, flags: int, payload: bytes | None) -> CallReceived | None:
        if not stream_id & 1:
            self._refuse(stream_id, status.INVALID_ARGUMENT, "stream id must be odd")
            return None
        if stream_id <= self._last_id:
            self._refuse(
                stream_id,
                status.INVALID_ARGUMENT,
                "stream id cannot be re-used and must increment",
            )
            return None
        self._last_id = stream_id
        if payload is None:
            self._refuse(
                stream_id,
                status.RESOURCE_EXHAUSTED,
                f"request exceeds the maximum of {MESSAGE_MAX} bytes",
            )
            return None
        try:
            request = decode_request(payload)
        except DecodeError as error:
            self._refuse(stream_id, status.INVALID_ARGUMENT, f"malformed request: {error}")
            return None
        self._open[stream_id] = bool(flags & FLAG_REMOTE_OPEN) and not flags & FLAG_REMOTE_CLOSED
        return CallReceived(stream_id, request, flags)

    def _data(
        self,
        stream_id: int,
        flags: int,
        payload: bytes | None,
        events: list[CallReceived | DataReceived | RemoteClosed | StreamAborted],
    ) -> None:
        client_open = self._open.get(stream_id)
        if client_open is None:
            # The client may not know yet that a call is over; an id that never was is an error.
            if stream_id > self._last_id or not stream_id & 1:
                self._refuse(stream_id, status.INVALID_ARGUMENT, "no such stream")
            return
        if payload is None:
            self._abort(
                stream_id,
                status.RESOURCE_EXHAUSTED,
                f"message exceeds the maximum of {MESSAGE_MAX} bytes",
                events,
            )
            return
        if not client_open:
            self._abort(
                stream_id, status.INVALID_ARGUMENT, "data on a stream closed by the client", events
            )
            return
        if not flags & FLAG_NO_DATA:
            events.append(DataReceived(stream_id, payload))
        if flags & FLAG_REMOTE_CLOSED:
            self._open[stream_id] = False
            events.append(RemoteClosed(stream_id))

    def _abort(
        self,
        stream_id: int,
        code: int,
        message: str,
        events: list[CallReceived | DataReceived | RemoteClosed | StreamAborted],
    ) -> None:
        self.fail(stream_id, code, message)
        events.append(StreamAborted(stream_id, code, message))


class _ClientStream:
    __slots__ = ("local_open", "streaming")

    def __init__(self, streaming: bool, local_open: bool) -> None:
        self.streaming = streaming
        self.local_open = local_open


class ClientConnection(_Connection):
    """The client's end. Frames on streams it has forgotten are dropped."""

    __slots__ = ("_next_id", "_streams")

    def __init__(self) -> None:
        super().__init__()
        self._next_id = 1
        self._streams: dict[int, _ClientStream] = {}

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_ns: int = 0,
        metadata: Metadata = (),
    ) -> int:
        """Begin a unary call; gives its stream id. It ends with ResponseReceived.

        Raises:
            TtrpcError: RESOURCE_EXHAUSTED, the request is too large or ids have run out.
        """
        message = encode_request(service, method, payload, timeout_ns, metadata)
        return self._begin(message, 0, _ClientStream(streaming=False, local_open=False))

    def open_stream(
        self,
        service: str,
        method: str,
        payload: bytes | None,
        timeout_ns: int = 0,
        metadata: Metadata = (),
    ) -> int:
        """Begin a streaming call; gives its stream id.

        With a payload the server alone will stream; with None the client sends messages.

        Raises:
            TtrpcError: RESOURCE_EXHAUSTED, the request is too large or ids have run out.
        """
        message = encode_request(service, method, payload or b"", timeout_ns, metadata)
        local_open = payload is None
        flags = FLAG_REMOTE_OPEN if local_open else FLAG_REMOTE_CLOSED
        return self._begin(message, flags, _ClientStream(streaming=True, local_open=local_open))

    def send_data(self, stream_id: int, *parts: Buffer) -> None:
        """Send one message, given in one or more parts.

        Raises:
            TtrpcError: FAILED_PRECONDITION, the stream is closed for sending;
                RESOURCE_EXHAUSTED, the message is too large and the stream lives on.
        """
        stream = self._streams.get(stream_id)
        if stream is None or not stream.local_open:
            raise status.TtrpcError(status.FAILED_PRECONDITION, "the stream is closed for sending")
        self._send_parts(stream_id, parts)

    def close_send(self, stream_id: int) -> None:
        """Send no more messages on a stream; receiving goes on."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.local_open:
            stream.local_open = False
            self._send(stream_id, DATA, _CLOSE, b"")

    def forget(self, stream_id: int) -> None:
        """Give up on a call. ttrpc can't tell the server more than that we send nothing more."""
        self.close_send(stream_id)
        self._streams.pop(stream_id, None)

    def feed(self, data: Buffer) -> list[DataReceived | RemoteClosed | ResponseReceived]:
        """Take bytes from the server; give what they mean."""
        events: list[DataReceived | RemoteClosed | ResponseReceived] = []
        for stream_id, kind, flags, payload in self._decoder.feed(data):
            stream = self._streams.get(stream_id)
            if stream is None or kind not in (RESPONSE, DATA):
                continue
            if payload is None:
                code = status.RESOURCE_EXHAUSTED
                error = f"message exceeds the maximum of {MESSAGE_MAX} bytes"
                self.close_send(stream_id)
                events.append(self._finish(stream_id, Response(code, error, b"")))
            elif kind == RESPONSE:
                try:
                    response = decode_response(payload)
                except DecodeError as fault:
                    response = Response(status.INTERNAL, f"malformed response: {fault}", b"")
                events.append(self._finish(stream_id, response))
            elif not stream.streaming:
                error = "the server answered a unary call with a data frame"
                events.append(self._finish(stream_id, Response(status.INTERNAL, error, b"")))
            else:
                if not flags & FLAG_NO_DATA:
                    events.append(DataReceived(stream_id, payload))
                if flags & FLAG_REMOTE_CLOSED:
                    del self._streams[stream_id]
                    events.append(RemoteClosed(stream_id))
        return events

    def _begin(self, message: bytes, flags: int, stream: _ClientStream) -> int:
        if len(message) > MESSAGE_MAX:
            raise _too_large(len(message))
        stream_id = self._next_id
        if stream_id > _STREAM_ID_MAX:
            raise status.TtrpcError(
                status.RESOURCE_EXHAUSTED, "stream ids have run out: connect anew"
            )
        self._next_id += 2
        self._streams[stream_id] = stream
        self._send(stream_id, REQUEST, flags, message)
        return stream_id

    def _finish(self, stream_id: int, response: Response) -> ResponseReceived:
        del self._streams[stream_id]
        return ResponseReceived(stream_id, response)
