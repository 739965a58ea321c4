"""Runs each mount case in a mount namespace that ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.storage.cases import CASES

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_mount_case(name: str, tmp_path: Path) -> None:
    """The case's own docstring says what is expected."""
    unshare = ("unshare", "--mount", "--propagation", "slave")
    case = (sys.executable, "-m", "tests.integration.storage.cases", name, str(tmp_path))
    done = subprocess.run(
        [*unshare, *case],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
