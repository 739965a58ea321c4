from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import jsonlite

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_agrees_with_json(value: Any) -> None:
    assert json.loads(jsonlite.dumps(value)) == value
    assert jsonlite.loads(json.dumps(value)) == value
    assert jsonlite.loads(json.dumps(value, indent=2, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "text", ["", "{", '{"a":1}x', '{"a" 1}', "nul", "NaN", "[1,]", '"\n"', '{"a":1', "[" * 100_000]
)
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the text differs by Python version
        jsonlite.loads(text)


def test_malformed_without_the_json_package_loaded() -> None:
    code = (
        "import sys; from guest_agent import jsonlite\n"
        "assert 'json' not in sys.modules\n"
        "try: jsonlite.loads(b'{\"a\" 1}')\n"
        "except ValueError as error: print(error)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "':'" in output


def test_values_without_a_json_form() -> None:
    with pytest.raises(TypeError, match="set"):
        jsonlite.dumps({"a": {1}})
