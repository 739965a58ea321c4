"""The hand-written envelopes against the generated ones."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.message import DecodeError as PbDecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos.ttrpc import ttrpc_pb2
from shim.ttrpc import status
from shim.ttrpc.messages import (
    DecodeError,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

texts = st.text(max_size=200)
pairs = st.lists(st.tuples(texts, texts), max_size=3)
int64s = st.integers(-(1 << 63), (1 << 63) - 1)


@given(texts, texts, st.binary(max_size=300), int64s, pairs)
def test_request(
    service: str, method: str, payload: bytes, timeout_ns: int, metadata: list[tuple[str, str]]
) -> None:
    message = ttrpc_pb2.Request(
        service=service,
        method=method,
        payload=payload,
        timeout_nano=timeout_ns,
        metadata=[ttrpc_pb2.KeyValue(key=key, value=value) for key, value in metadata],
    )
    encoded = encode_request(service, method, payload, timeout_ns, metadata)
    assert encoded == message.SerializeToString()
    request = decode_request(encoded)
    assert (request.service, request.method, request.payload) == (service, method, payload)
    assert (request.timeout_ns, list(request.metadata)) == (timeout_ns, metadata)


@given(st.integers(1, 16), texts, st.binary(max_size=300))
def test_response(code: int, text: str, payload: bytes) -> None:
    good = encode_response(status.OK, "", payload)
    assert good == ttrpc_pb2.Response(payload=payload).SerializeToString()
    assert decode_response(good).payload == payload
    bad = encode_response(code, text, b"dropped")
    expected = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=code, message=text))
    assert bad == expected.SerializeToString()
    assert (decode_response(bad).code, decode_response(bad).message) == (code, text)


def test_response_with_details_and_unencodable_text() -> None:
    message = ttrpc_pb2.Response(payload=b"p")
    message.status.code = -1
    message.status.details.add(type_url="x", value=b"y")
    response = decode_response(message.SerializeToString() + b"\x1a\x01z")
    assert (response.code, response.payload) == (-1, b"p")
    assert decode_response(encode_response(2, "a\udc80", b"")).message == "a?"


@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        request = ttrpc_pb2.Request.FromString(data)
    except PbDecodeError:
        with pytest.raises(DecodeError):
            decode_request(data)
    else:
        ours = decode_request(data)
        assert (ours.service, ours.method) == (request.service, request.method)
        assert (ours.payload, ours.timeout_ns) == (request.payload, request.timeout_nano)
        assert list(ours.metadata) == [(pair.key, pair.value) for pair in request.metadata]


@given(st.binary(max_size=60))
def test_arbitrary_response_bytes(data: bytes) -> None:
    try:
        response = ttrpc_pb2.Response.FromString(data)
    except PbDecodeError:
        # protobuf looks into the details, which we skip: we may accept, but never crash.
        with contextlib.suppress(DecodeError):
            decode_response(data)
        return
    ours = decode_response(data)
    assert (ours.code, ours.message) == (response.status.code, response.status.message)
    assert ours.payload == response.payload
