"""Running other programs: a deadline for each, and an error that says what failed."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class DeployError(Exception):
    """Something the user has to know; the text says what failed and where to look."""


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return what it wrote to its standard output.

    Params: ``timeout`` in seconds; ``env`` is added to our environment.
    Raises: DeployError when it can't be started, exits with another code than 0 or runs
    past its deadline; the text carries the end of what it wrote.
    """
    line = shlex.join(str(word) for word in argv)
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    except OSError as error:
        raise DeployError(f"{line}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"{line}: not done after {timeout:g} s") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise DeployError(f"{line}: exit code {done.returncode}\n{tail}")
    return done.stdout
