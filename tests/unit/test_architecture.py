"""Who may import whom, what start paths may import, and how large a module may be.

Read from the sources, without importing them. A module that does not exist yet is not
missed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shim", "vmm", "guest_agent", "protos")
MAX_LINES = 500

# From the top down. A module may import its own layer and those below it, among them the
# whole of vmm only where BACKEND_USERS says so. The longest matching prefix counts.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("shim.cli", "shim.bench", "shim.daemon"),
    ("shim.backends",),
    ("shim.stub", "shim.delete", "shim.serve", "shim.launcher", "shim.cleanup.sweeper"),
    (
        "shim.task_service",
        "shim.sandbox_service",
        "shim.volume_service",
        "shim.packet_filter_service",
        "shim.transfer_service",
        "shim.console_service",
        "shim.management.routes",
        "shim.monitoring.pod_metrics",
        "shim.monitoring.node",
        "shim.monitoring.pods",
    ),
    ("shim.translate_pod",),
    ("shim.translate",),
    ("shim.pod.declarable_sandbox",),
    ("shim.pod.sandbox",),
    ("shim.pod.creation",),
    ("shim.pod.builder", "shim.pod.container_files"),
    (
        "shim.pod.resources",
        "shim.pod.volumes",
        "shim.pod.direct_volumes",
        "shim.pod.disks",
        "shim.pod.vfio",
    ),
    ("shim.pod.vm", "shim.pod.size", "shim.pod.archives", "shim.pod.guest_swap"),
    ("shim.pod.pause", "shim.pod.files", "shim.pod.life", "shim.pod.stats"),
    ("shim.pod.container", "shim.pod.process", "shim.pod.hooks", "shim.pod.stand_in"),
    (
        "shim.agent",
        "shim.agent_session",
        "shim.pod.annotations",
        "shim.guest_connection",
        "shim.net",
        "shim.storage",
        "shim.stdio",
        "shim.oci",
        "shim.publisher",
        "shim.management",
        "shim.http",
        "shim.pod.vfio_groups",
        "shim.pod.unplug",
    ),
    (
        "shim.sizing.vm_size",
        "shim.sizing.swap",
        "shim.cgroup",
        "shim.sizing.cpu_pinning",
        "shim.sizing.oom_score",
    ),
    ("shim.config", "shim.metrics", "shim.monitoring"),
    ("vmm.hypervisor",),
    ("shim.ttrpc",),
    ("protos", "shim.errors", "vmm.errors", "shim.ttrpc.status"),
)
BACKEND_USERS = ("shim.backends", "shim.cli", "shim.bench")
BACKENDS = ("vmm.qemu", "vmm.firecracker", "vmm.cloud_hypervisor")

# Protocol code: bytes in, events out.
SANS_IO = (
    "protos.lite",
    "shim.ttrpc.connection",
    "shim.ttrpc.framing",
    "shim.ttrpc.messages",
    "shim.ttrpc.status",
    "shim.http.codec",
    "shim.metrics",
    "shim.monitoring.exposition",
    "vmm.cloud_hypervisor.bodies",
    "vmm.cloud_hypervisor.event_codec",
    "vmm.cloud_hypervisor.plan",
    "vmm.cmdline",
    "vmm.firecracker.bodies",
    "vmm.firecracker.metrics",
    "vmm.firecracker.plan",
    "shim.sizing.vm_size",
    "vmm.http1",
    "vmm.qemu.qmp_codec",
)
IO_MODULES = {"trio", "socket", "asyncio", "select", "selectors", "subprocess", "ssl"}

# Loaded before `start` has printed the address, or before the guest agent answers.
START_PATHS = (
    "shim.stub",
    "shim.bootstrap",
    "shim.errors",
    "shim.ttrpc.framing",
    "shim.ttrpc.messages",
    "shim.ttrpc.connection",
    "shim.ttrpc.status",
    "protos.lite",
    "protos.tables",
    "guest_agent.main",
)
SLOW = {
    "asyncio",
    "dataclasses",
    "enum",
    "hashlib",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "re",
    "subprocess",
    "typing",
}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is loaded when the importing module is."""

    name: str
    at_start: bool
    typing_only: bool


def modules() -> dict[str, Path]:
    """Return our modules by name, generated ones left out."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name.endswith("_pb2.py"):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(name: str) -> tuple[Import, ...]:
    """Return everything a module imports."""
    tree = ast.parse(MODULES[name].read_text())
    is_package = MODULES[name].name == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    return tuple(_walk(tree, package, at_start=True, typing_only=False))


def _walk(node: ast.AST, package: str, *, at_start: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, at_start, typing_only)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if child.level:  # relative: one dot is the package itself
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                module = ".".join([*parents, *([module] if module else [])])
            for alias in child.names:
                full = f"{module}.{alias.name}"
                yield Import(full if full in MODULES else module, at_start, typing_only)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for inner in child.body:
                yield from _walk(_wrap(inner), package, at_start=False, typing_only=True)
            for inner in child.orelse:
                yield from _walk(_wrap(inner), package, at_start=at_start, typing_only=typing_only)
        else:
            deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _walk(
                child, package, at_start=at_start and not deferred, typing_only=typing_only
            )


def _wrap(statement: ast.stmt) -> ast.Module:
    return ast.Module([statement], [])


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def within(name: str, prefix: str) -> bool:
    """Whether a module is the one named by prefix, or in it."""
    return name == prefix or name.startswith(f"{prefix}.")


def layer(name: str) -> int | None:
    """Return the number of a module's layer from the top, None for one that has none."""
    found = [
        (len(prefix), number)
        for number, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if within(name, prefix)
    ]
    return max(found)[1] if found else None


def ours(name: str) -> list[Import]:
    """Return a module's imports of our own modules."""
    return [i for i in imports(name) if any(within(i.name, package) for package in PACKAGES)]


@pytest.mark.parametrize("name", MODULES)
def test_module_size(name: str) -> None:
    if not within(name, "protos.tables"):
        assert len(MODULES[name].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", [n for n in MODULES if layer(n) is not None])
def test_imports_go_downwards(name: str) -> None:
    upwards = [
        i.name
        for i in ours(name)
        if (target := layer(i.name)) is not None and target < (layer(name) or 0)
    ]
    assert upwards == []


@pytest.mark.parametrize("name", MODULES)
def test_who_may_import_which_package(name: str) -> None:
    for found in ours(name):
        if within(name, "protos"):
            assert within(found.name, "protos"), found
        elif within(name, "vmm"):
            assert within(found.name, "vmm"), found
        elif within(name, "guest_agent"):
            allowed = ("guest_agent", "shim.ttrpc", "protos")
            assert any(within(found.name, prefix) for prefix in allowed), found
        elif within(name, "shim.ttrpc"):
            allowed = ("shim.ttrpc", "protos", "shim.errors")
            assert any(within(found.name, prefix) for prefix in allowed), found
        else:
            assert not within(found.name, "guest_agent"), found


@pytest.mark.parametrize("name", [n for n in MODULES if within(n, "shim")])
def test_only_backends_and_the_cli_name_a_backend(name: str) -> None:
    if not any(within(name, user) for user in BACKEND_USERS):
        named = [i.name for i in ours(name) if any(within(i.name, b) for b in BACKENDS)]
        assert named == []


@pytest.mark.parametrize("name", [n for n in SANS_IO if n in MODULES])
def test_sans_io_modules_do_no_io(name: str) -> None:
    found = {i.name.split(".")[0] for i in imports(name) if not i.typing_only}
    assert found & IO_MODULES == set()


def start_closure(name: str) -> Iterator[str]:
    """Return the module and all of ours that importing it loads, packages included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in MODULES:
            continue
        seen.add(current)
        yield current
        waiting += [i.name for i in imports(current) if i.at_start]
        waiting += [current.rpartition(".")[0]]


@pytest.mark.parametrize("name", [n for p in START_PATHS for n in MODULES if within(n, p)])
def test_start_paths_import_little_of_the_standard_library(name: str) -> None:
    for module in start_closure(name):
        roots = {i.name.split(".")[0] for i in imports(module) if i.at_start}
        foreign = roots - sys.stdlib_module_names - set(PACKAGES)
        assert foreign == set(), module
        assert roots & SLOW == set(), module


@pytest.mark.parametrize("name", [n for n in START_PATHS if n in MODULES])
def test_start_paths_load_little_when_really_imported(name: str) -> None:
    script = (
        f"import sys\nbefore = set(sys.modules)\nimport {name}\n"
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert loaded - sys.stdlib_module_names <= set(PACKAGES)
    assert loaded & SLOW == set()


@pytest.mark.parametrize("name", [n for n, p in MODULES.items() if p.name == "__init__.py"])
def test_packages_stay_empty(name: str) -> None:
    assert MODULES[name].read_text() == ""


def test_the_walk_sees_deferred_typing_and_relative_imports() -> None:
    source = (
        "import os\n"
        "if TYPE_CHECKING:\n    import typing\nelse:\n    import json\n"
        "def f():\n    import re\n"
        "class C:\n    import enum\n"
        "try:\n    from logging import handlers\nexcept ImportError:\n    pass\n"
    )
    source += "from . import x\nfrom ..b import y\n"
    tree = ast.parse(source)
    found = {i.name: i for i in _walk(tree, "p.a", at_start=True, typing_only=False)}
    at_start = {n for n, i in found.items() if i.at_start}
    assert at_start == {"os", "json", "enum", "logging", "p.a", "p.b"}
    assert {n for n, i in found.items() if i.typing_only} == {"typing"}
