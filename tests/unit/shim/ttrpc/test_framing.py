"""Cutting byte streams into frames, however they are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc.framing import (
    DATA,
    HEADER_SIZE,
    MESSAGE_MAX,
    REQUEST,
    FrameDecoder,
    encode_frame,
    encode_header,
)

frames = st.tuples(
    st.integers(0, 0xFFFF_FFFF), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=80)
)


def test_header_layout() -> None:
    assert encode_header(0x010203, 0x0A0B0C0D, DATA, 5).hex() == "000102030a0b0c0d0305"


@given(st.lists(frames, max_size=8), st.data())
def test_any_split(sent: list[tuple[int, int, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = FrameDecoder()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert received == sent
    assert decoder.at_boundary


def test_byte_by_byte() -> None:
    decoder = FrameDecoder()
    stream = encode_frame(1, REQUEST, 0, b"ab") + encode_frame(3, DATA, 5, b"")
    received = []
    for index in range(len(stream)):
        received += decoder.feed(stream[index : index + 1])
        assert decoder.at_boundary == (index in (HEADER_SIZE + 1, len(stream) - 1))
    assert received == [(1, REQUEST, 0, b"ab"), (3, DATA, 5, b"")]


@given(st.binary(max_size=200), st.integers(1, 30))
def test_arbitrary_bytes_never_fail(stream: bytes, step: int) -> None:
    decoder = FrameDecoder()
    split = []
    for start in range(0, len(stream), step):
        split += decoder.feed(stream[start : start + step])
    assert split == FrameDecoder().feed(memoryview(stream))


@pytest.mark.parametrize("step", [1000, 65536, 1 << 30])
def test_oversized_frame_is_discarded_and_the_next_one_read(step: int) -> None:
    decoder = FrameDecoder()
    stream = bytes.fromhex("004000010000000f0100") + bytes(MESSAGE_MAX + 1)
    stream += encode_frame(17, REQUEST, 0, b"next")
    received = []
    for start in range(0, len(stream), step):
        received += decoder.feed(stream[start : start + step])
    assert received == [(15, REQUEST, 0, None), (17, REQUEST, 0, b"next")]
    assert decoder.at_boundary


def test_oversized_frame_is_reported_with_its_header() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(bytes.fromhex("ffffffff0000000f0100")) == [(15, REQUEST, 0, None)]
    assert not decoder.at_boundary


def test_largest_frame_is_accepted() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(bytes.fromhex("00400000000000110100")) == []
    payload = bytes(range(256)) * (MESSAGE_MAX // 256)
    assert decoder.feed(payload[:-1]) == []
    assert decoder.feed(payload[-1:]) == [(17, REQUEST, 0, payload)]


def test_reset_forgets_a_partial_frame() -> None:
    for partial in (b"\0\0", encode_header(9, 1, REQUEST, 0) + b"x", b"\xff" * HEADER_SIZE):
        decoder = FrameDecoder()
        decoder.feed(partial)
        assert not decoder.at_boundary
        decoder.reset()
        assert decoder.at_boundary
        assert decoder.feed(encode_frame(5, DATA, 0, b"y")) == [(5, DATA, 0, b"y")]
