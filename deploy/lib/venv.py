"""The private virtual environment with the project's dependencies."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from pathlib import Path

from deploy.lib.command import run
from deploy.lib.work import REPOSITORY, locked, work_dir

PYTHON = Path("/usr/bin/python3")
"""Debian's own interpreter: version managers' wrappers change PATH and cost time."""

PIP_TIMEOUT = 1200.0


def dependencies(*, tests: bool) -> list[str]:
    """The requirements that pyproject.toml declares, with those of the tests if wanted."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["test"] if tests else []
    return [*project["dependencies"], *extra]


def prepare_venv(target: Path, requirements: list[str]) -> Path:
    """Make a virtual environment with ``requirements`` at ``target``; returns its python.

    Nothing is done when it already has them. Modules are compiled whatever
    PYTHONDONTWRITEBYTECODE says: the shim's start would pay for it each time.
    Raises: DeployError when an environment can't be made or a requirement can't be had.
    """
    python = target / "bin/python"
    version = run([PYTHON, "-c", "import sys; print(sys.version)"], timeout=30)
    stamp = hashlib.sha256("\n".join([version, *requirements]).encode()).hexdigest()
    mark = target / "complete"
    with locked(f"venv-{hashlib.sha256(str(target).encode()).hexdigest()[:12]}"):
        if mark.is_file() and mark.read_text() == stamp:
            return python
        # Not made elsewhere and moved: a virtual environment's scripts know their place.
        shutil.rmtree(target, ignore_errors=True)
        run([PYTHON, "-m", "venv", target], timeout=300)
        run(
            [python, "-m", "pip", "install", "--quiet", "--no-compile",
             "--cache-dir", work_dir() / "pip", *requirements],
            timeout=PIP_TIMEOUT,
        )  # fmt: skip
        compile_tree(python, site_packages(target))
        mark.write_text(stamp)
    return python


def site_packages(venv: Path) -> Path:
    """The directory of a virtual environment that holds installed packages."""
    (path,) = (venv / "lib").glob("python3*/site-packages")
    return path


def compile_tree(python: Path, *trees: Path) -> None:
    """Write .pyc files for all modules below ``trees``. Raises: DeployError."""
    # Some packages carry files for other Python versions: a failure to compile one is theirs.
    script = (
        "import compileall, sys\nfor tree in sys.argv[1:]: compileall.compile_dir(tree, quiet=2)"
    )
    env = {"PYTHONDONTWRITEBYTECODE": ""}
    run([python, "-c", script, *trees], timeout=600, env=env)
