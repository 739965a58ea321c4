from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "asyncio",
    "contextlib",
    "ctypes",
    "dataclasses",
    "enum",
    "functools",
    "google",
    "json",
    "logging",
    "pathlib",
    "re",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "trio",
    "typing",
}


def test_the_agent_starts_without_heavy_modules() -> None:
    code = "import sys; sys.path.insert(0, '.'); import guest_agent.main; print(*sys.modules)"
    output = subprocess.check_output([sys.executable, "-ISc", code], text=True)
    assert not HEAVY & set(output.split())
