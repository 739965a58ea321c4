from __future__ import annotations

from collections.abc import Iterable

from shim.cli.findings import Finding, Level, collect, tool_output


def test_a_broken_probe_is_a_failure_and_stops_nothing() -> None:
    def broken() -> Iterable[Finding]:
        yield Finding("broken", Level.OK, "first part")
        raise OSError("no such thing")

    def sound() -> Iterable[Finding]:
        yield Finding("sound", Level.OK, "fine")

    found = collect([("broken", broken), ("sound", sound)])
    assert [(f.name, f.level) for f in found] == [
        ("broken", Level.OK),
        ("broken", Level.FAIL),
        ("sound", Level.OK),
    ]
    assert found[1].text == "could not be checked: no such thing"


def test_tool_output() -> None:
    assert tool_output("sh", "-c", "echo ' words '; echo noise >&2") == "words"
    assert tool_output("sh", "-c", "echo words; exit 3") == ""
    assert tool_output("no-such-tool-anywhere") == ""
