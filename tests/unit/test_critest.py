"""docs/critest.md and docs/shimtest.md name tests that exist; none passes without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| (?P<spec>[^|]+) \| (?:`(?P<test>[^`]+)`)? ?\| (?P<result>[^|]+) \|")


def rows() -> list[re.Match[str]]:
    text = (ROOT / "docs/critest.md").read_text()
    return [match for match in ROW.finditer(text) if match["spec"] not in ("Spec", "---")]


def existing() -> set[str]:
    found = set()
    for path in (ROOT / "tests/e2e/cri").glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found.add(f"{path.stem}::{node.name}")
    return found


def test_named_tests_exist() -> None:
    assert {row["test"] for row in rows() if row["test"]} <= existing()


def test_shimtests_named_tests_exist() -> None:
    text = (ROOT / "docs/shimtest.md").read_text()
    named = re.findall(r"\| `(\S+)::(test_\w+)` \|", text)
    assert len(named) > 25
    for path, name in named:
        source = (ROOT / "tests" / f"{path}.py").read_text()
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), (path, name)


def test_what_passes_names_its_test() -> None:
    assert len(rows()) > 80
    for row in rows():
        assert bool(row["test"]) == row["result"].startswith("pass"), row[0]
