"""Requests however they are cut up, and what is no request."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.http.codec import Answer, Request, RequestDecoder, encode_answer, failure
from vmm.http1 import HEAD_MAX, HttpError, ResponseDecoder, TooLarge, encode_request


def decode(data: bytes, cuts: list[int] | None = None) -> Request | None:
    decoder = RequestDecoder(1 << 16)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    request = None
    for begin, end in itertools.pairwise(edges):
        request = decoder.feed(data[begin:end])
    return request


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=6), st.booleans())
def test_what_our_own_client_sends(body: bytes, cuts: list[int], has_body: bool) -> None:
    data = encode_request("PUT", "/iptables?a=1&b=x%20y&a=2", body if has_body else None)
    request = decode(data, cuts)
    assert request is not None
    assert (request.method, request.path) == ("PUT", "/iptables")
    assert request.query == {"a": "1", "b": "x y"}
    assert request.body == (body if has_body else b"")
    assert request.keep_alive


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.lists(st.integers(0, 999)))
def test_content_in_chunks(chunks: list[bytes], cuts: list[int]) -> None:
    head = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    request = decode(head + body, cuts)
    assert request is not None
    assert request.body == b"".join(chunks)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    with contextlib.suppress(HttpError):
        decode(b"GET / HTTP/1.1\r\n" + data)
    with contextlib.suppress(HttpError):
        decode(data)


def test_requests_follow_each_other_on_a_connection() -> None:
    decoder = RequestDecoder()
    both = encode_request("GET", "/one") + encode_request("PUT", "/two", b"{}")
    first = decoder.feed(both)
    assert first is not None
    assert first.path == "/one"
    second = decoder.next().feed(b"")
    assert second is not None
    assert (second.path, second.body) == ("/two", b"{}")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
        b"GET http://host/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_malformed_requests(head: bytes) -> None:
    with pytest.raises(HttpError):
        decode(head)


def test_what_is_too_large() -> None:
    with pytest.raises(TooLarge):
        decode(b"GET / HTTP/1.1\r\nA: " + b"x" * HEAD_MAX)
    with pytest.raises(TooLarge):
        decode(b"PUT / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n")
    with pytest.raises(TooLarge):
        decode(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n")


def test_old_clients_and_those_that_wait() -> None:
    old = decode(b"GET / HTTP/1.0\r\n\r\n")
    assert old is not None
    assert not old.keep_alive
    closing = decode(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert closing is not None
    assert not closing.keep_alive
    decoder = RequestDecoder()
    decoder.feed(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert decoder.waits_for_continue
    assert decoder.feed(b"ab") is not None
    assert not decoder.waits_for_continue


def test_media_types_by_name() -> None:
    def request(accept: str) -> Request:
        return Request("GET", "/", headers={"accept": accept})

    assert request("application/json").accepts("application/json")
    assert request("text/plain, Application/JSON;q=0.9").accepts("application/json")
    assert not request("*/*").accepts("application/json")


@given(st.binary(max_size=100), st.sampled_from([200, 404, 503, 299]))
def test_answers_are_read_back(body: bytes, status: int) -> None:
    data = encode_answer(Answer(status, body, headers={"X": "y"}), keep_alive=False)
    response = ResponseDecoder().feed(data)
    assert response is not None
    assert (response.status, response.body) == (status, body)
    assert response.headers["x"] == "y"
    assert not response.keep_alive


def test_an_answer_s_fields_are_its_own() -> None:
    with pytest.raises(ValueError, match="line end"):
        encode_answer(failure(400, "x", Allow="GET\r\nX: y"))
    assert encode_answer(Answer(200, b"text"), head_only=True).endswith(b"\r\n\r\n")
