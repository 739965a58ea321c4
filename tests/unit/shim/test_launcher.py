from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from shim import version
from shim.launcher import render_launcher

ROOT = Path(__file__).parents[3]


def test_launcher_runs_the_stub(tmp_path: Path) -> None:
    path = tmp_path / "shim"
    path.write_text(
        render_launcher("/usr/bin/python3", str(ROOT), str(tmp_path / "pyc"), ["/a b/'c'"])
    )
    path.chmod(0o755)
    done = subprocess.run([path, "-v"], capture_output=True, text=True, check=True)
    assert done.stdout == f"containerd-shim-katapy-v2: {version.VERSION}\n"
    assert done.stderr == ""
    assert list(tmp_path.rglob("stub.*.opt-2.pyc")), "compiled into its own directory"


def test_command_line_prints_the_same_text() -> None:
    command = [sys.executable, "-m", "shim.launcher", "/usr/bin/python3", "/src", "/pyc", "/site"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == render_launcher("/usr/bin/python3", "/src", "/pyc", ["/site"])


@pytest.mark.parametrize("python", ["python3", "/a b/python3", "/" + "p" * 120])
def test_interpreters_no_kernel_would_execute(python: str) -> None:
    with pytest.raises(ValueError, match="interpreter"):
        render_launcher(python, "/src", "/pyc", [])


def test_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == version.VERSION
