from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from guest_agent.resync import MAGIC, PREFACE_SIZE, Resync
from shim.ttrpc.framing import DATA, FrameDecoder, encode_frame

PREFACES = st.binary(min_size=16, max_size=16).map(MAGIC.__add__)
FRAMES = st.lists(st.binary(max_size=60).map(lambda data: encode_frame(1, DATA, 0, data)))
JUNK = st.binary(max_size=80).filter(lambda data: MAGIC not in data and 0xFF not in data)


def feed(line: Resync, data: bytes, cuts: list[int]) -> list[tuple[bytes, bytes]]:
    """Feed bytes in pieces; give each connection's preface and its bytes."""
    connections: list[tuple[bytes, bytes]] = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        for is_preface, part in line.feed(data[start:end]):
            if is_preface:
                connections.append((bytes(part), b""))
            else:
                preface, before = connections[-1]
                connections[-1] = (preface, before + part)
    return connections


@given(
    JUNK, st.lists(st.tuples(PREFACES, FRAMES), min_size=1, max_size=4), st.lists(st.integers(0))
)
def test_connections_are_told_apart_wherever_the_line_is_cut(
    junk: bytes, connections: list[tuple[bytes, list[bytes]]], cuts: list[int]
) -> None:
    data = junk + b"".join(preface + b"".join(frames) for preface, frames in connections)
    expected = [(preface, b"".join(frames)) for preface, frames in connections]
    assert feed(Resync(), data, cuts) == expected


@given(PREFACES, FRAMES, st.binary(min_size=1, max_size=40), PREFACES, st.lists(st.integers(0)))
def test_junk_where_a_frame_would_begin_is_skipped(
    first: bytes, frames: list[bytes], junk: bytes, second: bytes, cuts: list[int]
) -> None:
    junk = b"\xff" + junk.replace(b"\xff", b"\xfe")  # 0xff can't begin a frame
    data = first + b"".join(frames) + junk + second
    assert feed(Resync(), data, cuts) == [(first, b"".join(frames)), (second, b"")]


@given(st.binary(max_size=400), st.lists(st.integers(0)), PREFACES)
def test_after_a_hang_up_any_state_is_left(data: bytes, cuts: list[int], preface: bytes) -> None:
    line = Resync()
    for _ in line.feed(preface):
        pass
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        for _ in line.feed(data[start:end]):
            pass
    line.lose()
    assert list(line.feed(preface)) == [(True, preface)]


@given(PREFACES, st.binary(max_size=50), PREFACES, st.integers(0, PREFACE_SIZE))
def test_a_preface_inside_a_frame_is_suspect_and_can_be_accepted(
    first: bytes, part: bytes, second: bytes, cut: int
) -> None:
    line = Resync()
    begun = encode_frame(1, DATA, 0, bytes(1000))[: 10 + len(part)]
    assert not line.suspect
    for piece in (first, begun, second[:cut], second[cut:]):
        for _ in line.feed(piece):
            pass
    assert line.suspect
    assert line.accept() == second
    assert not line.suspect
    frame = encode_frame(3, DATA, 0, b"after")
    assert list(line.feed(frame)) == [(False, frame)]


def test_the_split_agrees_with_the_frame_decoder() -> None:
    frames = [encode_frame(1, DATA, 0, bytes([number]) * number) for number in range(0, 255, 7)]
    line, decoder = Resync(), FrameDecoder()
    preface = MAGIC + bytes(16)
    for is_preface, part in line.feed(preface + b"".join(frames)):
        if not is_preface:
            assert len(decoder.feed(part)) == len(frames)
    assert decoder.at_boundary
