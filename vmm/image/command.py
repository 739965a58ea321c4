"""Runs the tools an image is built with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmm.image.errors import ImageError

_LAST_LINES = 12


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Run a tool quietly and return what it printed.

    Args:
        argv: the command.
        timeout: seconds it may take.
        cwd: its working directory.
        env: variables added to its environment.

    Raises:
        ImageError: the tool isn't there, failed (with its last lines) or took too long.
    """
    name = os.fspath(argv[0])
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            check=False,
        )
    except FileNotFoundError:
        raise ImageError(f"{name} is needed to build a guest image and isn't installed") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{name} didn't finish within {timeout:.0f} s") from None
    if done.returncode:
        words = " ".join(os.fspath(word) for word in argv)
        output = (done.stdout + done.stderr).strip().splitlines()[-_LAST_LINES:]
        raise ImageError("\n  ".join([f"{words}: exit status {done.returncode}", *output]))
    return done.stdout
