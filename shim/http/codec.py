"""HTTP/1.1 as a small server needs it: bytes in, requests out; responses to bytes. Pure.

Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

from vmm.http1 import HttpError, MessageDecoder

BODY_MAX = 1 << 20
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request.

    Args:
        method: such as ``GET``.
        path: decoded path of the target, without the query.
        query: decoded parameters; of one that is repeated the first.
        headers: fields by lower-case name; repeated ones are joined by a comma.
        body: the content, without any framing.
        keep_alive: whether the client may send another request on the connection.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = True

    def accepts(self, kind: str) -> bool:
        """Whether the client asks for a media type by name, and not for anything."""
        wanted = self.headers.get("accept", "").lower().split(",")
        return any(word.partition(";")[0].strip() == kind for word in wanted)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with.

    Args:
        status: three-digit code.
        body: the content.
        content_type: its media type.
        headers: further fields.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


def failure(status: int, text: str, **headers: str) -> Answer:
    """Make an answer that says in one line why a request failed."""
    return Answer(status, f"{text}\n".encode(), headers=headers)


class RequestDecoder(MessageDecoder):
    """Decodes the requests of one connection, one at a time.

    Args:
        body_max: bytes a body may have.
    """

    what = "request"

    def __init__(self, body_max: int = BODY_MAX) -> None:
        super().__init__(body_max)
        self._method = self._target = ""

    @property
    def started(self) -> bool:
        """Whether any byte of a request has come."""
        return self._begun or bool(self._buffer)

    @property
    def waits_for_continue(self) -> bool:
        """Whether the client holds its content back until it is told to go on."""
        expects = self._headers.get("expect", "").lower() == "100-continue"
        return self._begun and expects and not self._complete and not self._body

    def feed(self, data: bytes) -> Request | None:
        """Take bytes; return the request once it is complete.

        Raises:
            HttpError: it is malformed or too large.
        """
        self._feed(data)
        return self._request() if self._complete else None

    def next(self) -> RequestDecoder:
        """Return the decoder of the request that follows, with what came of it already."""
        following = RequestDecoder(self._body_max)
        following._buffer = self._buffer
        return following

    def _begin(self, line: bytes) -> Callable[[], bool]:
        words = line.split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise HttpError(f"not a request line: {line[:80]!r}")
        self._version = (1, words[2][-1] - ord("0"))
        self._method = words[0].decode("latin-1")
        self._target = words[1].decode("latin-1")
        if self._method not in _METHODS:
            raise HttpError(f"method {self._method[:20]!r}")
        if not self._target.startswith("/") or not (
            self._target.isascii() and self._target.isprintable()
        ):
            raise HttpError(f"target {self._target[:80]!r}")
        return self._framed() or self._nothing

    def _request(self) -> Request:
        # "//" would begin a host's name.
        parts = urlsplit("/" + self._target.lstrip("/"))
        query: dict[str, str] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            query.setdefault(name, value)
        return Request(
            self._method,
            unquote(parts.path),
            query,
            self._headers,
            bytes(self._body),
            self._keeps_alive,
        )


def encode_answer(answer: Answer, *, head_only: bool = False, keep_alive: bool = True) -> bytes:
    """Return an answer as bytes.

    Args:
        answer: what to say.
        head_only: leave the content out, as ``HEAD`` wants it.
        keep_alive: whether another request may follow.

    Raises:
        ValueError: a field can't stand in a head.
    """
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = ""
    fields = {
        "Content-Type": answer.content_type,
        "Content-Length": str(len(answer.body)),
        **answer.headers,
    }
    if not keep_alive:
        fields["Connection"] = "close"
    lines = [f"HTTP/1.1 {answer.status} {phrase}"]
    for name, value in fields.items():
        if "\r" in name + value or "\n" in name + value:
            raise ValueError(f"field {name!r} has a line end in it")
        lines.append(f"{name}: {value}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head if head_only else head + answer.body
