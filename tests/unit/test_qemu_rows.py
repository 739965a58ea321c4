"""docs/qemu.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:e2e|integration|unit)/[\w/]+\.py)(?:::(\w+))?`")


def test_named_tests_exist() -> None:
    named = NAMED.findall((ROOT / "docs/qemu.md").read_text())
    assert len(named) > 25
    for path, test in named:
        tree = ast.parse((ROOT / "tests" / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        names = {node.name for node in tree.body if isinstance(node, functions)}
        assert not test or test in names, f"{path}::{test}"
