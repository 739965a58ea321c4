"""The two envelopes of ttrpc, Request and Response, encoded by hand. Sans-IO.

Written out field by field because they are on the path of every call, and because
bulk payloads must not take the way through a general codec.

Source: protos/ttrpc/ttrpc.proto (containerd/ttrpc request.proto).
"""

from __future__ import annotations

from protos.lite import (
    DecodeError,
    decode_span,
    decode_tag,
    decode_varint,
    encode_varint,
    skip_field,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Metadata = Iterable[tuple[str, str]]

__all__ = [
    "DecodeError",
    "Request",
    "Response",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]

_UINT64 = 0xFFFF_FFFF_FFFF_FFFF


class Request:
    """A call: what to run, its encoded argument, relative deadline in ns and metadata.

    ``timeout_ns`` is 0 for none and negative when it passed before sending.
    """

    __slots__ = ("metadata", "method", "payload", "service", "timeout_ns")

    def __init__(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_ns: int = 0,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.service = service
        self.method = method
        self.payload = payload
        self.timeout_ns = timeout_ns
        self.metadata = metadata


class Response:
    """The end of a call: a status code, its text, and the encoded result if the code is 0."""

    __slots__ = ("code", "message", "payload")

    def __init__(self, code: int, message: str, payload: bytes) -> None:
        self.code = code
        self.message = message
        self.payload = payload


def encode_request(
    service: str, method: str, payload: bytes, timeout_ns: int = 0, metadata: Metadata = ()
) -> bytes:
    """Encode a Request; fields with default values are left out."""
    out = b""
    if service:
        raw = service.encode()
        out += b"\x0a" + encode_varint(len(raw)) + raw
    if method:
        raw = method.encode()
        out += b"\x12" + encode_varint(len(raw)) + raw
    if payload:
        out += b"\x1a" + encode_varint(len(payload)) + payload
    if timeout_ns:
        out += b"\x20" + encode_varint(timeout_ns & _UINT64)
    for key, value in metadata:
        raw_key, raw_value = key.encode(), value.encode()
        pair = b"\x0a" + encode_varint(len(raw_key)) + raw_key if raw_key else b""
        if raw_value:
            pair += b"\x12" + encode_varint(len(raw_value)) + raw_value
        out += b"\x2a" + encode_varint(len(pair)) + pair
    return out


def decode_request(data: bytes) -> Request:
    """Decode a Request.

    Raises:
        DecodeError: ``data`` is malformed.
    """
    service = method = ""
    payload = b""
    timeout_ns = 0
    metadata: tuple[tuple[str, str], ...] = ()
    pos, end = 0, len(data)
    while pos < end:
        tag = data[pos]
        if tag < 0x80:
            pos += 1
        else:
            tag, pos = decode_tag(data, pos, end)
        if tag == 0x20:
            value, pos = decode_varint(data, pos, end)
            timeout_ns = (value ^ 1 << 63) - (1 << 63)
            continue
        if tag not in (0x0A, 0x12, 0x1A, 0x2A):
            pos = _skip(data, pos, end, tag)
            continue
        if pos < end and data[pos] < 0x80 and data[pos] < end - pos:
            start = pos + 1  # the usual case, without a call
            pos = start + data[pos]
        else:
            start, pos = decode_span(data, pos, end)
        if tag == 0x0A:
            service = _text(data, start, pos)
        elif tag == 0x12:
            method = _text(data, start, pos)
        elif tag == 0x1A:
            payload = data[start:pos]
        else:
            metadata += (_decode_pair(data, start, pos),)
    return Request(service, method, payload, timeout_ns, metadata)


def encode_response(code: int, message: str, payload: bytes) -> bytes:
    """Encode a Response; a status of code 0 is left out, as is the payload otherwise."""
    if code:
        raw = message.encode("utf-8", "replace")
        status = b"\x08" + encode_varint(code & _UINT64)
        if raw:
            status += b"\x12" + encode_varint(len(raw)) + raw
        return b"\x0a" + encode_varint(len(status)) + status
    if payload:
        return b"\x12" + encode_varint(len(payload)) + payload
    return b""


def decode_response(data: bytes) -> Response:
    """Decode a Response; details of its status are ignored.

    Raises:
        DecodeError: ``data`` is malformed.
    """
    code = 0
    message = ""
    payload = b""
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = decode_tag(data, pos, end)
        if tag == 0x0A:
            start, pos = decode_span(data, pos, end)
            while start < pos:
                tag, start = decode_tag(data, start, pos)
                if tag == 0x08:
                    value, start = decode_varint(data, start, pos)
                    code = (value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
                elif tag == 0x12:
                    text, start = decode_span(data, start, pos)
                    message = _text(data, text, start)
                else:
                    start = _skip(data, start, pos, tag)
        elif tag == 0x12:
            start, pos = decode_span(data, pos, end)
            payload = data[start:pos]
        else:
            pos = _skip(data, pos, end, tag)
    return Response(code, message, payload)


def _decode_pair(data: bytes, pos: int, end: int) -> tuple[str, str]:
    key = value = ""
    while pos < end:
        tag, pos = decode_tag(data, pos, end)
        if tag in (0x0A, 0x12):
            start, pos = decode_span(data, pos, end)
            if tag == 0x0A:
                key = _text(data, start, pos)
            else:
                value = _text(data, start, pos)
        else:
            pos = _skip(data, pos, end, tag)
    return key, value


def _skip(data: bytes, pos: int, end: int, tag: int) -> int:
    if tag < 8:
        raise DecodeError("field number 0")
    return skip_field(data, pos, end, tag >> 3, tag & 7)


def _text(data: bytes, start: int, end: int) -> str:
    try:
        return str(data[start:end], "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"string is not UTF-8: {error.reason}") from None
