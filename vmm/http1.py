"""HTTP/1.1 as an API client over a unix socket needs it: bytes in, responses out.

One request at a time, no pipelining. Firecracker and Cloud Hypervisor serve HTTP with
the same small library, whose answers have an empty reason phrase and a 204 without any
length; what a proxy might put in between (chunks, an interim response, an answer that
ends with the connection) is understood too.
Source: RFC 9112.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEAD_MAX = 16 << 10
CHUNK_LINE_MAX = 1 << 10
BODY_MAX = 16 << 20

_NO_BODY = (204, 304)
_TOKEN_EXTRAS = frozenset(b"!#$%&'*+-.^_`|~")


class HttpError(ValueError):
    """The peer does not speak HTTP as it should, or goes beyond a limit."""


class TooLarge(HttpError):
    """A message is larger than it may be."""


@dataclass(frozen=True)
class Response:
    """A complete response.

    Args:
        status: three-digit code.
        headers: fields by lower-case name; repeated ones are joined by a comma.
        body: the content, without any framing.
        keep_alive: whether another request may follow on the connection.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


def encode_request(method: str, target: str, body: bytes | None = None) -> bytes:
    """Return a request as bytes.

    Args:
        method: ``GET``, ``PUT``, ``PATCH`` or ``DELETE``.
        target: absolute path; visible ASCII only.
        body: JSON content; None sends none, and no length either.

    Raises:
        ValueError: method or target can't stand in a request line.
    """
    for word in (method, target):
        if not word or not word.isascii() or not word.isprintable() or " " in word:
            raise ValueError(f"not a word of a request line: {word!r}")
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Accept: application/json"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class MessageDecoder:
    """Decodes one message. A subclass says what its first line and its framing mean.

    Args:
        body_max: bytes a body may have.
    """

    what = "message"

    def __init__(self, body_max: int) -> None:
        self._body_max = body_max
        self._buffer = bytearray()
        self._step = self._head
        self._begun = False
        self._version = (1, 1)
        self._headers: dict[str, str] = {}
        self._left = 0
        self._body = bytearray()
        self._complete = False

    def _begin(self, line: bytes) -> Callable[[], bool]:
        """Take the first line; return the step that follows the head."""
        raise NotImplementedError

    def _feed(self, data: bytes) -> None:
        self._buffer += data
        while not self._complete and self._step():
            pass

    @property
    def _keeps_alive(self) -> bool:
        words = _words(self._headers.get("connection", ""))
        return "close" not in words and (self._version == (1, 1) or "keep-alive" in words)

    # -- steps: each consumes what it can and says whether another may follow ---------

    def _head(self) -> bool:
        while self._buffer.startswith(b"\r\n") and not self._begun:
            del self._buffer[:2]  # RFC 9112 2.2: tolerated before a message
        end = self._buffer.find(b"\r\n\r\n")
        if end > HEAD_MAX or (end < 0 and len(self._buffer) > HEAD_MAX):
            raise TooLarge(f"{self.what} head over {HEAD_MAX} bytes")
        if end < 0:
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        self._begun = True
        self._headers = _fields(lines[1:])
        self._step = self._begin(lines[0])
        return True

    def _framed(self) -> Callable[[], bool] | None:
        """The step for a body with a length or in chunks; None without either."""
        coding = self._headers.get("transfer-encoding")
        length = self._headers.get("content-length")
        if coding is not None and length is not None:
            raise HttpError("both Content-Length and Transfer-Encoding")
        if coding is not None:
            if _words(coding) != ["chunked"]:
                raise HttpError(f"transfer coding {coding!r}")
            return self._chunk_line
        if length is not None:
            self._left = self._checked(_content_length(length))
            return self._counted
        return None

    def _nothing(self) -> bool:
        self._complete = True
        return False

    def _counted(self) -> bool:
        self._take()
        self._complete = not self._left
        return False

    def _until_end(self) -> bool:
        self._left = self._checked(len(self._buffer))
        self._take()
        return False

    def _chunk_line(self) -> bool:
        line = self._line()
        if line is None:
            return False
        size = line.partition(b";")[0].strip(b" \t")
        if not size or not all(byte in b"0123456789abcdefABCDEF" for byte in size):
            raise HttpError(f"chunk size {size[:20]!r}")
        self._left = self._checked(int(size, 16))
        self._step = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        self._take()
        if self._left or len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise HttpError("a chunk is longer than it says")
        del self._buffer[:2]
        self._step = self._chunk_line
        return True

    def _trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if line:
            return True
        self._complete = True
        return False

    # -- parts --------------------------------------------------------------------------

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end > CHUNK_LINE_MAX or (end < 0 and len(self._buffer) > CHUNK_LINE_MAX):
            raise TooLarge(f"chunk line over {CHUNK_LINE_MAX} bytes")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _take(self) -> None:
        data = self._buffer[: self._left]
        self._body += data
        self._left -= len(data)
        del self._buffer[: len(data)]

    def _checked(self, more: int) -> int:
        if len(self._body) + more > self._body_max:
            raise TooLarge(f"{self.what} body over {self._body_max} bytes")
        return more


class ResponseDecoder(MessageDecoder):
    """Decodes the response to one request.

    Args:
        body_max: bytes a body may have.
    """

    what = "response"

    def __init__(self, body_max: int = BODY_MAX) -> None:
        super().__init__(body_max)
        self._status = 0

    @property
    def started(self) -> bool:
        """Whether any byte of the response has come."""
        return self._begun or bool(self._buffer)

    def feed(self, data: bytes) -> Response | None:
        """Take bytes; return the response once it is complete.

        Raises:
            HttpError: it is malformed, too large, or more than one response came.
        """
        self._feed(data)
        if not self._complete:
            return None
        if self._buffer:
            raise HttpError(f"{len(self._buffer)} bytes follow a response nobody asked for")
        return self._response()

    def end(self) -> Response:
        """Take the end of the connection; return the response when that completes it.

        Raises:
            HttpError: the response is cut off.
        """
        if not self._complete and self._step != self._until_end:
            raise HttpError("the connection ended before the response did")
        return self._response()

    def _begin(self, line: bytes) -> Callable[[], bool]:
        self._version, self._status = _status_line(line)
        if 100 <= self._status < 200:
            if self._status == 101:
                raise HttpError("the peer switched to another protocol")
            return self._head  # interim: the real one follows
        framed = self._framed()
        if self._status in _NO_BODY:
            self._left = 0
            return self._nothing
        return framed or self._until_end

    def _response(self) -> Response:
        ends_with_connection = self._step == self._until_end
        keep = self._keeps_alive and not ends_with_connection
        return Response(self._status, self._headers, bytes(self._body), keep)


def _status_line(line: bytes) -> tuple[tuple[int, int], int]:
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if (
        version not in (b"HTTP/1.1", b"HTTP/1.0")
        or not code.isdigit()
        or len(code) != 3
        or code[:1] == b"0"
        or rest[3:4] not in (b"", b" ")
    ):
        raise HttpError(f"not a status line: {line[:80]!r}")
    return (1, version[-1] - ord("0")), int(code)


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or not raw_name or not all(map(_is_token, raw_name)):
            raise HttpError(f"not a header field: {line[:80]!r}")
        name = raw_name.decode("ascii").lower()
        value = raw_value.strip(b" \t").decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _is_token(byte: int) -> bool:
    return byte < 0x80 and (chr(byte).isalnum() or byte in _TOKEN_EXTRAS)


def _words(value: str) -> list[str]:
    return [word.strip().lower() for word in value.split(",") if word.strip()]


def _content_length(value: str) -> int:
    # Sent twice with one value it is that value, with two it is an attack or a bug.
    lengths = {word.strip() for word in value.split(",")}
    text = lengths.pop()
    if lengths or not text.isascii() or not text.isdigit() or len(text) > 15:
        raise HttpError(f"Content-Length {value[:40]!r}")
    return int(text)
