"""docs/critest.md and docs/shimtest.md name tests that exist; none passes without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<spec>.+?) \| (?P<runc>pass(?: \(2\.1\))?) \| (?P<katapy>[^|]+) "
    r"\| (?P<ours>[^|]+) \|$",
    re.MULTILINE,
)
COUNT = re.compile(r"^\| (\S+) \| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)
SPECS = 122


def text() -> str:
    return (ROOT / "docs/critest.md").read_text()


def rows() -> list[re.Match[str]]:
    return list(ROW.finditer(text()))


def named(row: re.Match[str]) -> set[str]:
    return set(re.findall(r"`([^`]+)`", row["ours"]))


def existing() -> set[str]:
    found = set()
    for path in (ROOT / "tests/e2e/cri").glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found.add(f"{path.stem}::{node.name}")
    return found


def test_named_tests_exist() -> None:
    assert set().union(*map(named, rows())) <= existing()


def test_every_spec_names_its_test() -> None:
    for row in rows():
        assert named(row) or row["ours"] == "containerd alone", row[0]


def test_the_tables_agree_with_the_counts() -> None:
    """Those of the later containerd are all rows, those of the earlier the unmarked ones."""
    counts = {
        (line[1], line[2]): tuple(map(int, line.groups()[2:])) for line in COUNT.finditer(text())
    }
    assert all(sum(numbers) == SPECS for numbers in counts.values())
    for column, later, earlier in (
        ("runc", "runc", "runc"),
        ("katapy", "katapy, named by its path", "katapy"),
    ):
        results = [row[column] for row in rows()]
        passed = sum(result.startswith("pass") for result in results)
        assert passed == counts["2.1.9", later][0]
        assert len(results) - passed == counts["2.1.9", later][1]
        assert results.count("pass") == counts["1.7.24", earlier][0]


def test_what_is_not_met_has_its_reason() -> None:
    for row in rows():
        if not row["katapy"].startswith("pass"):
            reason = re.search(r"\((\d)\)", row["katapy"])
            assert reason, row[0]
            assert re.search(rf"^{reason[1]}\. \*", text(), re.MULTILINE), row[0]


def test_shimtests_named_tests_exist() -> None:
    text = (ROOT / "docs/shimtest.md").read_text()
    named = re.findall(r"\| `(\S+)::(test_\w+)` \|", text)
    assert len(named) > 25
    for path, name in named:
        source = (ROOT / "tests" / f"{path}.py").read_text()
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), (path, name)
