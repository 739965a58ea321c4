"""The HTTP both VMMs speak: that of the micro_http crate, in its strictness and its oddities.

Bytes in, requests out; no I/O. Source: firecracker-microvm/micro-http, src/connection.rs,
src/common/headers.rs, src/response.rs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

LINE_MAX = 1024
"""Bytes of a request or header line, its end included: the size of the server's buffer."""

DEFAULT_PAYLOAD_MAX = 51200
METHODS = ("GET", "PUT", "PATCH", "DELETE")
SERVER_FULL = (
    b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
    b'{ "error": "Too many open connections" }'
)


class BadHttp(Exception):
    """What came is not HTTP as this server reads it."""


@dataclass
class Request:
    """A request as it arrived.

    Args:
        method: GET, PUT, PATCH or DELETE.
        path: absolute path, with neither scheme nor host.
        body: None when there was no ``Content-Length``, or it was 0.
        fds: descriptors that came with the bytes read so far.
        expects_continue: the client waits for a go-ahead before the body.
    """

    method: str
    path: str
    body: bytes | None = None
    fds: list[int] = field(default_factory=list)
    expects_continue: bool = False


@dataclass(frozen=True)
class Response:
    """An answer.

    Args:
        status: code; 204 has neither body nor length.
        body: JSON or other text.
        deprecated: whether to say that the request used something deprecated.
    """

    status: int
    body: bytes = b""
    deprecated: bool = False

    def encode(self, server: str) -> bytes:
        """Return the bytes on the wire; the reason phrase is empty, as it is there."""
        lines = [f"HTTP/1.1 {self.status} ", f"Server: {server}", "Connection: keep-alive"]
        if self.deprecated:
            lines.append("Deprecation: true")
        if self.status not in (100, 204):
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


CONTINUE = Response(100)


def low_level_error(reason: object) -> Response:
    """Return the answer to bad HTTP: it looks like JSON, but the raw newline makes it none."""
    text = f'{{ "error": "{reason}\nAll previous unanswered requests will be dropped." }}'
    return Response(400, text.encode())


class Parser:
    """Turns the bytes of one connection into requests.

    Args:
        payload_max: largest body in bytes.
    """

    def __init__(self, payload_max: int) -> None:
        self._payload_max = payload_max
        self._buffer = b""
        self._request: Request | None = None
        self._body_size = 0
        self._in_body = False

    def feed(self, data: bytes) -> Iterator[Request | Response]:
        """Take bytes; yield complete requests, and the go-aheads their clients wait for.

        Raises:
            BadHttp: the connection's state is dropped, as are its unanswered requests.
        """
        self._buffer += data
        try:
            while (found := self._step()) is not None:
                if found is not False:
                    yield found
        except BadHttp:
            self.__init__(self._payload_max)  # type: ignore[misc]
            raise

    def _step(self) -> Request | Response | Literal[False] | None:
        """Do one step: None when more bytes are needed, False when there is nothing to yield."""
        if self._in_body:
            return self._body()
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            if len(self._buffer) >= LINE_MAX:
                raise BadHttp(self._too_long())
            return None
        if len(line) + 2 > LINE_MAX:
            raise BadHttp(self._too_long())
        self._buffer = rest
        if self._request is None:
            self._request = _request_line(line)
            return False
        if line:
            self._header(self._request, line)
            return False
        return self._end_of_headers(self._request)

    def _too_long(self) -> str:
        if self._request is None:
            return "Invalid request."
        return f"Invalid header. Reason: Header too long: {self._buffer[:32]!r}"

    def _header(self, request: Request, line: bytes) -> None:
        try:
            name, colon, value = line.decode().partition(":")
        except UnicodeDecodeError as error:
            raise BadHttp(f"Invalid header. Reason: {error}") from error
        if not colon:
            raise BadHttp(f"Invalid header. Reason: Header is not properly formatted: {name}")
        match name.strip().lower():
            case "content-length":
                value = value.strip()
                if not value.isdecimal() or int(value) >= 1 << 32:
                    raise BadHttp(f"Invalid header. Reason: Invalid value. Key:{name}; {value}")
                self._body_size = int(value)
            case "expect" if value.strip() == "100-continue":
                request.expects_continue = True
            case "accept-encoding" if "identity;q=0" in value.replace(" ", ""):
                raise BadHttp(f"Invalid header. Reason: Invalid value. Key:{name}; {value}")

    def _end_of_headers(self, request: Request) -> Request | Response | Literal[False]:
        if self._body_size > self._payload_max:
            raise BadHttp(
                f"Request payload with size {self._body_size} is larger than the limit of "
                f"{self._payload_max} allowed by server."
            )
        if self._body_size == 0:
            return self._done()
        self._in_body = True
        return CONTINUE if request.expects_continue else False

    def _body(self) -> Request | None:
        assert self._request is not None
        if len(self._buffer) < self._body_size:
            return None
        self._request.body = self._buffer[: self._body_size]
        self._buffer = self._buffer[self._body_size :]
        return self._done()

    def _done(self) -> Request:
        request, self._request = self._request, None
        assert request is not None
        self._in_body, self._body_size = False, 0
        return request


def _request_line(line: bytes) -> Request:
    words = line.split(b" ")
    if len(words) != 3:
        raise BadHttp("Invalid request.")
    try:
        method, uri, version = (word.decode() for word in words)
    except UnicodeDecodeError as error:
        raise BadHttp("Invalid URI: Cannot parse URI as UTF-8.") from error
    if method not in METHODS:
        raise BadHttp("Invalid HTTP Method: Unsupported HTTP method.")
    if not uri:
        raise BadHttp("Invalid URI: Empty URI not allowed.")
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise BadHttp("Invalid HTTP Version: Unsupported HTTP version.")
    if uri.startswith("http://"):
        _, _, path = uri.removeprefix("http://").partition("/")
        uri = f"/{path}"
    return Request(method, uri)


def json_object(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    """Build an object, refusing a repeated key as serde does."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate field `{twice}`")
    return found
