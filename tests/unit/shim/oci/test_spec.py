from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidArgument
from shim.oci.spec import load_process, load_spec, parse_json
from tests.unit.shim.oci.specs import cri_container


def write(bundle: Path, text: str | bytes) -> Path:
    (bundle / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return bundle


def test_a_good_spec_is_returned_as_it_is(tmp_path: Path) -> None:
    spec = cri_container()
    assert load_spec(write(tmp_path, json.dumps(spec))) == spec


def test_null_is_the_same_as_absent(tmp_path: Path) -> None:
    spec = cri_container() | {"hooks": None}
    spec["linux"]["resources"]["memory"]["limit"] = None
    loaded = load_spec(write(tmp_path, json.dumps(spec)))
    assert "hooks" not in loaded
    assert "limit" not in loaded["linux"]["resources"]["memory"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"config\.json: No such file"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{\n  "process": {,', "line 2 column 15"),
        ("", "line 1 column 1"),
        ("[]", "top level must be an object"),
        (b'{"a": "\xff"}', "utf-8"),
        ("[" * 100_000, "recursion"),
        ('{"root": {"path": 4}}', r"config\.json: root\.path must be a string"),
        ('{"process": {}, "root": {"path": "r"}}', "process: args is empty"),
        ('{"process": {"args": ["a"], "cwd": "x"}, "root": {"path": "r"}}', "cwd 'x'"),
        ('{"process": {"args": ["a", 3]}}', r"process\.args\[1\] must be a string"),
        ('{"process": {"args": ["a"], "terminal": 1}}', r"terminal must be true or false"),
        ('{"process": {"args": ["a"], "user": {"uid": true}}}', r"user\.uid must be an integer"),
        ('{"linux": []}', "linux must be an object"),
        ('{"mounts": {}}', "mounts must be a list"),
        ("{}", r"root\.path is missing"),
    ],
)
def test_bad_specs_are_refused_by_name(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        load_spec(write(tmp_path, text))


@pytest.mark.parametrize("kind", ["uidMappings", "gidMappings"])
def test_a_user_namespace_needs_a_root(tmp_path: Path, kind: str) -> None:
    spec = cri_container()
    spec["linux"][kind] = [{"containerID": 1, "hostID": 70000, "size": 65535}]
    with pytest.raises(InvalidArgument, match=f"{kind}: container id 0 is not mapped"):
        load_spec(write(tmp_path, json.dumps(spec)))
    spec["linux"][kind] = [{"containerID": 0, "hostID": 70000, "size": 65536}]
    load_spec(write(tmp_path, json.dumps(spec)))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["process", "args", "root", "path", "linux", "mounts", "user"]),
            inner,
            max_size=4,
        )
    ),
)


@given(json_values)
def test_any_json_is_loaded_or_refused(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        load_process(text, "exec")
    except InvalidArgument:
        return
    assert parse_json(text, "exec")["args"]
