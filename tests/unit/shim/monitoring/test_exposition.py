"""What is written is read back, whatever is in it, and what is malformed is refused."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.monitoring.exposition import (
    ExpositionError,
    Family,
    Sample,
    gauge,
    labelled,
    merge,
    parse,
    render,
)

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
values = st.one_of(st.integers(-(1 << 70), 1 << 70), st.floats(allow_nan=False))
labels = st.dictionaries(names, st.text(max_size=12), max_size=3).map(lambda d: tuple(d.items()))


@st.composite
def families(draw: st.DrawFn) -> list[Family]:
    made = []
    for name in draw(st.lists(names, unique=True, max_size=4)):
        family = Family(
            name,
            draw(st.sampled_from(["gauge", "counter", "untyped"])),
            draw(st.text(max_size=20).map(str.strip)),
        )
        pairs = draw(st.lists(labels, unique=True, min_size=1, max_size=4))
        stamp = st.one_of(st.none(), st.integers(0, 1 << 45))
        family.samples = [Sample(name, pair, draw(values), draw(stamp)) for pair in pairs]
        made.append(family)
    return made


@given(families())
def test_what_is_written_is_read_back(made: list[Family]) -> None:
    read = parse(render(made))
    assert [f.samples for f in read] == [f.samples for f in made]
    assert [(f.name, f.kind) for f in read] == [(f.name, f.kind) for f in made]
    assert [f.help for f in read] == [f.help for f in made]


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ExpositionError):
        render(parse(text))


def test_the_format_is_prometheus_own() -> None:
    family = Family("rpc_ms", "histogram", "How long\ncalls take.")
    family.add(1, {"le": "1", "action": 'a"b\\c\nd'}, "_bucket")
    family.add(2, {"le": "+Inf", "action": "x"}, "_bucket")
    family.add(2.5, {"action": "x"}, "_sum")
    family.add(2, {"action": "x"}, "_count")
    assert render([family, gauge("up", "", math.inf), Family("none")]) == (
        "# HELP rpc_ms How long\\ncalls take.\n"
        "# TYPE rpc_ms histogram\n"
        'rpc_ms_bucket{le="1",action="a\\"b\\\\c\\nd"} 1\n'
        'rpc_ms_bucket{le="+Inf",action="x"} 2\n'
        'rpc_ms_sum{action="x"} 2.5\n'
        'rpc_ms_count{action="x"} 2\n'
        "# TYPE up gauge\n"
        "up +Inf\n"
    )
    (read, _) = parse(render([family, gauge("up", "", math.inf)]))
    assert read == family


def test_what_others_write_is_read() -> None:
    text = """
# a comment
# TYPE  http_requests_total counter
http_requests_total { method = "post" , code="200", } 1027 1395066363000
metric_without_timestamp_and_labels 12.47
nan_is_one NaN
"""
    first, second, third = parse(text)
    assert first.samples == [
        Sample("http_requests_total", (("method", "post"), ("code", "200")), 1027, 1395066363000)
    ]
    assert second.samples[0].value == 12.47
    assert math.isnan(third.samples[0].value)


@pytest.mark.parametrize(
    "line",
    ["1a 2", 'a{b="c} 1', "a{b=c} 1", 'a{b="c"d="e"} 1', "a", "a 1 2 3", "a one", "# TYPE a odd",
     "a 1_000", 'a{b:c="d"} 1'],
)  # fmt: skip
def test_malformed_lines_are_refused(line: str) -> None:
    with pytest.raises(ExpositionError, match="line 2"):
        parse(f"good 1\n{line}\n")


def test_names_that_would_break_the_text_are_not_written() -> None:
    with pytest.raises(ValueError, match="metric's name"):
        render([gauge("two words", "", 1)])
    with pytest.raises(ValueError, match="label's name"):
        render([gauge("one", "", {"a": 1}, label='x"')])


def test_sandboxes_are_told_apart_and_families_stay_together() -> None:
    one, two = gauge("fds", "Open.", 3), gauge("fds", "Open.", 4)
    other = Family("fds", "counter", samples=[Sample("fds", (), 5)])
    marked = [[labelled(one, {"sandbox_id": "a"})], [labelled(two, {"sandbox_id": "b"})], [other]]
    (merged,) = merge([*marked, marked[0]])
    assert [s.value for s in merged.samples] == [3, 4]
    # A guest must not pass for another sandbox.
    liar = Family("fds", "gauge", samples=[Sample("fds", (("sandbox_id", "b"),), 9)])
    assert labelled(liar, {"sandbox_id": "a"}).samples[0].labels == (("sandbox_id", "a"),)
