from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.config import rules

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.integers()),
)
ALL = [
    rules.flag(),
    rules.integer(1, 9),
    rules.number(0, 2),
    rules.choice("a", "b"),
    rules.text(),
    rules.texts(),
    rules.path(),
    rules.found_path("the PATH"),
]


@given(value=ANYTHING, rule=st.sampled_from(ALL))
def test_every_value_is_converted_or_refused(value: object, rule: rules.Rule[Any]) -> None:
    try:
        converted = rule.convert(value)
    except rules.Refused:
        return
    assert converted is None or type(converted) in (bool, int, float, str, tuple, type(Path()))


@given(st.integers())
def test_integer_keeps_to_its_range(value: int) -> None:
    rule = rules.integer(-3, 12)
    if -3 <= value <= 12:
        assert rule.convert(value) == value
    else:
        with pytest.raises(rules.Refused):
            rule.convert(value)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (rules.flag(), 1),
        (rules.flag(), "true"),
        (rules.integer(0, 5), True),
        (rules.integer(0, 5), 2.0),
        (rules.number(0, 5), True),
        (rules.number(0, 5), math.nan),
        (rules.number(0, math.inf), math.inf),
        (rules.choice("q35"), "Q35"),
        (rules.choice("q35"), ["q35"]),
        (rules.text(), "two\nlines"),
        (rules.text(), "nul\0"),
        (rules.texts(), "not a list"),
        (rules.texts(), ["a", 1]),
        (rules.texts(), ["a", ""]),
        (rules.path(), "relative/path"),
        (rules.path(), ""),
        (rules.path(), "/nul\0"),
        (rules.found_path("x"), "qemu"),
    ],
)
def test_refused(rule: rules.Rule[Any], value: object) -> None:
    with pytest.raises(rules.Refused):
        rule.convert(value)


@pytest.mark.parametrize(
    ("rule", "value", "converted"),
    [
        (rules.number(0, 5), 2, 2.0),
        (rules.texts(), ["a", "b c"], ("a", "b c")),
        (rules.texts(), [], ()),
        (rules.path(), "/run/katapy", Path("/run/katapy")),
        (rules.found_path("x"), "", None),
        (rules.found_path("x"), "/usr/bin/qemu", Path("/usr/bin/qemu")),
    ],
)
def test_converted(rule: rules.Rule[Any], value: object, converted: object) -> None:
    assert rule.convert(value) == converted


def test_texts_name_what_is_accepted() -> None:
    assert rules.integer(1, 9, "MiB").accepts == "a whole number of MiB from 1 to 9"
    assert rules.choice("a", "b").accepts == 'one of "a", "b"'
