"""Each key of the configuration is read by something: none is only accepted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from shim.config.model import SECTIONS

ROOT = Path(__file__).parents[4]

# How the code calls the object of each section.
NAMES = {
    "agent.kata": {"agent"},
    "runtime": {"runtime"},
    "katapy": {"katapy", "ours"},
}
HYPERVISOR_NAMES = {"hypervisor", "vm", "qemu"}

# Read by the loading itself, which makes the hypervisor's section of it.
IN_LOADING = {"runtime.hypervisor_name"}


def _reads() -> Iterator[tuple[str, str]]:
    """Yield (what is read from, attribute) of all of the shim but its configuration."""
    for path in sorted((ROOT / "shim").rglob("*.py")):
        if (ROOT / "shim/config") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                if isinstance(node.value, ast.Name):
                    yield node.value.id, node.attr
                elif isinstance(node.value, ast.Attribute):
                    yield node.value.attr.lstrip("_"), node.attr


def _by_method() -> dict[str, set[str]]:
    """Return the methods of the hypervisors' models and the keys that each reads."""
    tree = ast.parse((ROOT / "shim/config/hypervisors.py").read_text())
    found: dict[str, set[str]] = {}
    for kind in tree.body:
        for method in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef):
                found.setdefault(method.name, set()).update(
                    node.attr
                    for node in ast.walk(method)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                )
    return found


READS = set(_reads())
METHODS = _by_method()


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, field.name) for section, model in SECTIONS.items() for field in fields(model)],
)
def test_key_is_read(section: str, key: str) -> None:
    if f"{section}.{key}" in IN_LOADING:
        return
    names = NAMES.get(section, HYPERVISOR_NAMES)
    attributes = {key}
    if section.startswith("hypervisor."):
        attributes |= {method for method, keys in METHODS.items() if key in keys}
    assert any((name, attribute) in READS for name in names for attribute in attributes)


def test_the_search_does_not_find_what_nobody_reads() -> None:
    assert not any(attribute == "no_such_key" for _, attribute in READS)
    assert METHODS["max_memory"] == {"default_maxmemory", "default_memory"}
