"""The HTTP client codec: every way a response may be framed, cut up, and go wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.http1 import BODY_MAX, HEAD_MAX, HttpError, Response, ResponseDecoder, encode_request


def decode(*pieces: bytes, end: bool = False) -> Response | None:
    decoder = ResponseDecoder()
    response = None
    for piece in pieces:
        response = decoder.feed(piece)
    return decoder.end() if end else response


def test_request_without_a_body_has_no_length() -> None:
    data = encode_request("PUT", "/api/v1/vm.boot")
    assert data.startswith(b"PUT /api/v1/vm.boot HTTP/1.1\r\n")
    assert b"Content-Length" not in data
    assert data.endswith(b"\r\n\r\n")


def test_request_with_a_body() -> None:
    data = encode_request("PATCH", "/vm", b'{"a":1}')
    assert data.endswith(b"Content-Length: 7\r\n\r\n" + b'{"a":1}')
    assert b"Host: localhost\r\n" in data


@pytest.mark.parametrize("target", ["", "/a b", "/a\r\nX: y", "/ä", "/a\x00"])
def test_request_line_can_not_be_broken(target: str) -> None:
    with pytest.raises(ValueError, match="request line"):
        encode_request("GET", target)


def test_204_with_an_empty_reason_and_no_length() -> None:
    # As Firecracker and Cloud Hypervisor send it.
    response = decode(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n")
    assert response == Response(
        204, {"server": "Firecracker API", "connection": "keep-alive"}, b"", True
    )


def test_content_length() -> None:
    response = decode(b"HTTP/1.1 400 \r\nContent-Length: 4\r\n\r\nab", b"cd")
    assert response is not None
    assert (response.status, response.body, response.keep_alive) == (400, b"abcd", True)


def test_chunks_with_extension_and_trailer() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    response = decode(head, b"3;x=y\r\nabc\r\n", b"A\r\n0123456789\r\n0\r\nT: 1\r\n\r\n")
    assert response is not None
    assert response.body == b"abc0123456789"


def test_an_interim_response_is_passed_over() -> None:
    response = decode(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \r\n\r\n")
    assert response is not None
    assert response.status == 204


def test_a_body_may_end_with_the_connection() -> None:
    response = decode(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def", end=True)
    assert response is not None
    assert (response.body, response.keep_alive) == (b"abcdef", False)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: Keep-Alive\r\n", True),
    ],
)
def test_keep_alive(version: str, connection: str, kept: bool) -> None:
    response = decode(f"HTTP/{version} 200 \r\n{connection}Content-Length: 0\r\n\r\n".encode())
    assert response is not None
    assert response.keep_alive is kept


BAD = {
    "no version": b"200 OK\r\n\r\n",
    "another version": b"HTTP/2 200 OK\r\n\r\n",
    "short status": b"HTTP/1.1 20 \r\n\r\n",
    "long status": b"HTTP/1.1 2000 \r\n\r\n",
    "status below 100": b"HTTP/1.1 099 \r\n\r\n",
    "other digits": "HTTP/1.1 2٠0 \r\n\r\n".encode(),
    "no colon": b"HTTP/1.1 200 \r\nContent-Length\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 \r\nContent-Length : 1\r\n\r\n",
    "folded field": b"HTTP/1.1 200 \r\nA: b\r\n c\r\n\r\n",
    "negative length": b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
    "signed length": b"HTTP/1.1 200 \r\nContent-Length: +1\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length and chunks": (
        b"HTTP/1.1 200 \r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "unknown coding": b"HTTP/1.1 200 \r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "no chunk size": b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
    "signed chunk size": b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "chunk too long": b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "huge chunk": b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    "huge chunk line": b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000,
    "huge body": f"HTTP/1.1 200 \r\nContent-Length: {BODY_MAX + 1}\r\n\r\n".encode(),
    "huge head": b"HTTP/1.1 200 \r\nA: " + b"b" * HEAD_MAX,
    "switched protocol": b"HTTP/1.1 101 \r\n\r\n",
    "two responses": b"HTTP/1.1 204 \r\n\r\nHTTP/1.1 204 \r\n\r\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(HttpError):
        decode(data)


def test_a_body_without_a_length_is_limited_too() -> None:
    decoder = ResponseDecoder(body_max=10)
    assert decoder.feed(b"HTTP/1.1 200 \r\n\r\n0123456789") is None
    with pytest.raises(HttpError):
        decoder.feed(b"a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
    ],
)
def test_a_response_that_is_cut_off(data: bytes) -> None:
    with pytest.raises(HttpError, match="ended"):
        decode(data, end=True)


RESPONSES = st.builds(
    lambda status, body, chunks: _encode(status, body, chunks),
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    st.binary(max_size=200),
    st.lists(st.integers(1, 40), max_size=6),
)


def _encode(status: int, body: bytes, chunks: list[int]) -> tuple[int, bytes, bytes]:
    head = f"HTTP/1.1 {status} \r\n".encode()
    if not chunks:
        return status, body, head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    framed, rest = b"", body
    for size in [*chunks, len(body)]:
        piece, rest = rest[:size], rest[size:]
        if piece:
            framed += f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    return status, body, head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


@given(RESPONSES, st.lists(st.integers(1, 60), max_size=12))
def test_where_it_is_cut_does_not_matter(
    response: tuple[int, bytes, bytes], cuts: list[int]
) -> None:
    status, body, data = response
    decoder = ResponseDecoder()
    pieces = []
    for size in cuts:
        pieces.append(data[:size])
        data = data[size:]
    result = None
    for piece in [piece for piece in [*pieces, data] if piece]:
        assert result is None
        result = decoder.feed(piece)
    assert result is not None
    assert (result.status, result.body) == (status, body)


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_noise_is_refused_or_waited_on(pieces: list[bytes]) -> None:
    decoder = ResponseDecoder()
    try:
        for piece in pieces:
            decoder.feed(piece)
        decoder.end()
    except HttpError:
        pass


@given(RESPONSES, st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damage_never_breaks_the_decoder(
    response: tuple[int, bytes, bytes], where: int, damage: bytes
) -> None:
    data = bytearray(response[2])
    where %= len(data)
    data[where : where + len(damage)] = damage
    with suppress(HttpError):
        ResponseDecoder().feed(bytes(data))
