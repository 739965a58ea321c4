from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.containerd import bootstrap_pb2, runc_options_pb2
from shim import bootstrap
from shim.errors import InvalidArgument

# Vectors of an independent encoder (containerd 2.3.4 and a legacy daemon).
BOOTSTRAP_PARAMS = bytes.fromhex(
    "0a026331120764656661756c7418fcffffffffffffffff01220676322e332e342a252f72756e2f636f6e7461696e"
    "6572642f636f6e7461696e6572642e736f636b2e7474727063321f2f72756e2f636f6e7461696e6572642f636f6e"
    "7461696e6572642e736f636b3a132f7573722f62696e2f636f6e7461696e657264"
)
LEGACY_OPTIONS = bytes.fromhex(
    "0a1972756e74696d656f7074696f6e732e76312e4f7074696f6e7312250a116b61746170792e76312e4f7074696f"
    "6e7312102f6574632f6b61746170792e746f6d6c"
)
START = ["-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/bin/c"]
WORD = st.text("abcXYZ019._-", min_size=1).filter(lambda w: w not in (".", ".."))


def test_start_and_delete_command_lines_of_all_series() -> None:
    old = bootstrap.parse_arguments([*START, "-id", "c1", "-debug", "start"])
    assert (old.namespace, old.id, old.action) == ("k8s.io", "c1", "start")
    assert (old.address, old.publish_binary, old.debug) == ("/run/c.sock", "/bin/c", True)
    new = bootstrap.parse_arguments([*START, "-id", "c1", "-bundle", "/b", "delete"])
    assert (new.bundle, new.action, new.debug) == ("/b", "delete", False)


@given(WORD, WORD, st.sampled_from(["-", "--"]), st.booleans())
def test_flags_in_every_form_of_go(name: str, namespace: str, dashes: str, joined: bool) -> None:
    argv: list[str] = []
    for flag, value in (("id", name), ("namespace", namespace)):
        argv += [f"{dashes}{flag}={value}"] if joined else [f"{dashes}{flag}", value]
    got = bootstrap.parse_arguments([*argv, "start", "ignored"])
    assert (got.id, got.namespace, got.action) == (name, namespace, "start")


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_command_line_parses_or_is_refused(argv: list[str]) -> None:
    with contextlib.suppress(InvalidArgument):
        got = bootstrap.parse_arguments(argv)
        assert got.info or got.version or (got.action in bootstrap.ACTIONS and got.id)


def test_booleans_take_values_only_behind_an_equals_sign() -> None:
    base = ["-id", "a", "-namespace", "b"]
    assert bootstrap.parse_arguments([*base, "-debug=true", "start"]).debug
    assert not bootstrap.parse_arguments([*base, "-debug=0", "start"]).debug
    with pytest.raises(InvalidArgument, match="expected one of start, delete, got 'true'"):
        bootstrap.parse_arguments([*base, "-debug", "true", "start"])
    with pytest.raises(InvalidArgument, match="-debug is true or false"):
        bootstrap.parse_arguments([*base, "-debug=maybe", "start"])


@pytest.mark.parametrize("argv", [["-info"], ["--info"], ["-v"], ["-version"], ["-v=true"]])
def test_questions_need_no_action(argv: list[str]) -> None:
    got = bootstrap.parse_arguments(argv)
    assert got.info or got.version


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "expected one of"),
        (["-id"], "flag -id needs a value"),
        (["-colour", "red", "start"], "unknown flag -colour"),
        (["-namespace", "n", "start"], "-id is missing"),
        (["-id", "i", "start"], "-namespace is missing"),
        (["-id", "a/b", "-namespace", "n", "start"], "cannot name a directory"),
        (["-id", "..", "-namespace", "n", "start"], "cannot name a directory"),
        (["-id", "a\nb", "-namespace", "n", "start"], "cannot name a directory"),
        (["-id", "i", "-namespace", "x" * 256, "start"], "longer than 255 bytes"),
    ],
)
def test_bad_command_lines(argv: list[str], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        bootstrap.parse_arguments(argv)


def test_stdin_of_containerd_2_3() -> None:
    got = bootstrap.parse_stdin(BOOTSTRAP_PARAMS, "c1", "default")
    assert got.params
    assert got.debug
    assert got.ttrpc_address == "/run/containerd/containerd.sock.ttrpc"
    assert got.grpc_address == "/run/containerd/containerd.sock"
    assert got.publish_binary == "/usr/bin/containerd"
    assert got.options is None
    assert got.socket_dir == ""


def test_stdin_of_containerd_2_3_with_options_and_socket_dir() -> None:
    params = bootstrap_pb2.BootstrapParams(instance_id="c", namespace="n", socket_dir="/s")
    extension = params.extensions.add()
    extension.value.type_url = "type.googleapis.com/runtimeoptions.v1.Options"
    extension.value.value = b"\x12\x01x"
    got = bootstrap.parse_stdin(params.SerializeToString(), "c", "n")
    assert got.params
    assert not got.debug
    assert got.socket_dir == "/s"
    assert got.options == ("runtimeoptions.v1.Options", b"\x12\x01x")


def test_stdin_of_older_daemons() -> None:
    got = bootstrap.parse_stdin(LEGACY_OPTIONS, "c1", "default")
    assert not got.params
    assert got.options is not None
    assert got.options[0] == "runtimeoptions.v1.Options"
    assert got.options[1].endswith(b"/etc/katapy.toml")
    empty = bootstrap.parse_stdin(b"", "c1", "default")
    assert not empty.params
    assert empty.options is None


@given(st.binary(max_size=64))
def test_any_stdin_parses_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        got = bootstrap.parse_stdin(data, "c1", "default")
        assert not got.params
        assert got.options is None or "." in got.options[0]


def test_shim_cgroup_of_runc_options() -> None:
    options = runc_options_pb2.Options(shim_cgroup="/pods/a", binary_name="x", systemd_cgroup=True)
    url = "containerd.runc.v1.Options"
    assert bootstrap.shim_cgroup((url, options.SerializeToString())) == "/pods/a"
    assert bootstrap.shim_cgroup(("runtimeoptions.v1.Options", b"\x1a\x01x")) == ""
    assert bootstrap.shim_cgroup(None) == ""
    with pytest.raises(InvalidArgument, match="do not parse"):
        bootstrap.shim_cgroup((url, b"\x1a\xff"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(JSON_VALUES, st.sampled_from([None, 1]))
def test_json_agrees_with_the_json_package(value: object, indent: int | None) -> None:
    text = f" \n{json.dumps(value, indent=indent)}\t"
    assert bootstrap.parse_json(text) == value


@pytest.mark.parametrize("text", ["", "{", '{"a" 1}', "[1,]", "{} x", "nul", '"a'])
def test_json_refuses_what_the_json_package_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        json.loads(text)
    with pytest.raises(ValueError, match=r"."):
        bootstrap.parse_json(text)


def _config(**annotations: str) -> bytes:
    names = {
        "group": "io.containerd.runc.v2.group",
        "sandbox": "io.kubernetes.cri.sandbox-id",
        "kind": "io.kubernetes.cri.container-type",
    }
    return json.dumps({"annotations": {names[k]: v for k, v in annotations.items()}}).encode()


@pytest.mark.parametrize(
    ("config", "group", "member"),
    [
        (None, "c1", False),
        (b'{"process":{}}', "c1", False),
        (_config(group="g", sandbox="s"), "g", False),
        (_config(sandbox="s"), "s", False),
        (_config(sandbox="c1", kind="sandbox"), "c1", False),
        (_config(sandbox="s", kind="container"), "s", True),
        (_config(kind="container"), "c1", False),
        (b'{"annotations":null,"x":"io.kubernetes.cri.sandbox-id"}', "c1", False),
        (b'{"annotations":{"io.kubernetes.cri-o.SandboxID":"o"}}', "o", False),
    ],
)
def test_groups(config: bytes | None, group: str, member: bool) -> None:
    got = bootstrap.find_group(config, "c1")
    assert (got.id, got.member) == (group, member)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (b'{"annotations":{"io.kubernetes.cri.sandbox-id":"s"}', "malformed"),
        (b'["io.kubernetes.cri.sandbox-id"]', "malformed"),
        (b'{"annotations":{"io.kubernetes.cri.sandbox-id":7}}', "not a text"),
        (_config(sandbox="../../etc"), "cannot name a directory"),
        (b'\xff"io.kubernetes.cri.sandbox-id"', "malformed"),
        (b"[" * 100_000 + b'"io.kubernetes.cri.sandbox-id"', "malformed"),
    ],
)
def test_bad_group_annotations(config: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        bootstrap.find_group(config, "c1")


def test_answers_read_back() -> None:
    address = 'unix:///run/a "b"\\c'
    assert bootstrap.render_answer(address, params=False).decode() == address
    answer = json.loads(bootstrap.render_answer(address, params=True))
    assert answer == {"version": 3, "address": address, "protocol": "ttrpc"}
    for params in (False, True):
        text = bootstrap.render_answer("unix:///run/x", params).decode()
        assert bootstrap.parse_record(text + "\n") == "/run/x"


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "abstract-name", "vsock://3:1024", "{1}"])
def test_unusable_connection_records(text: str) -> None:
    assert bootstrap.parse_record(text) == ""
