from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.stdio import frames


@given(st.integers(1, 3), st.binary(max_size=70_000))
def test_data_round_trips(channel: int, data: bytes) -> None:
    frame = frames.decode_frame(frames.data_frame(channel, data))
    assert (frame.channel, bytes(frame.data), frame.eof, frame.credit) == (channel, data, False, 0)


@given(st.integers(1, 3), st.integers(0, 2**63))
def test_credit_round_trips(channel: int, credit: int) -> None:
    frame = frames.decode_frame(frames.credit_frame(channel, credit))
    assert (frame.channel, frame.credit, bytes(frame.data)) == (channel, credit, b"")


def test_eof_is_protobuf() -> None:
    assert frames.eof_frame(frames.STDIN) == b"\x18\x01\x28\x01"
    assert frames.decode_frame(frames.eof_frame(frames.STDIN)).eof


def test_attach_names_the_process_and_skips_an_empty_exec_id() -> None:
    assert frames.attach_frame("c1", "", 5) == b"\x0a\x02c1\x30\x05"
    assert frames.attach_frame("c1", "e", 300) == b"\x0a\x02c1\x12\x01e\x30\xac\x02"


def test_data_is_a_view_of_the_payload() -> None:
    payload = frames.data_frame(2, b"x" * 1000)
    assert frames.decode_frame(payload).data.obj is payload


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x38\x07" + b"\x42\x02hi" + b"\x49" + bytes(8) + b"\x55" + bytes(4)
    frame = frames.decode_frame(unknown + frames.data_frame(2, b"abc") + unknown)
    assert (frame.channel, bytes(frame.data)) == (2, b"abc")


@pytest.mark.parametrize(
    "payload", [b"\x22\x05ab", b"\x18", b"\x18" + b"\xff" * 11, b"\x1b", b"\x49\0"]
)
def test_malformed_is_refused(payload: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode_frame(payload)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_frame_or_a_frame_error(payload: bytes) -> None:
    with contextlib.suppress(frames.FrameError):
        frames.decode_frame(payload)
