"""Programs under a deadline, and the one deadline of the whole benchmark."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from shim.errors import DeadlineExceeded, Internal


class Deadline:
    """Seconds that are left of the benchmark; each wait takes the smaller of its own and that.

    Args:
        seconds: until everything must have ended.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def limit(self, seconds: float) -> float:
        """A wait's own limit, cut down to what is left.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"the benchmark has not ended within {self._seconds:g} s")
        return min(seconds, left)


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    Raises:
        DeadlineExceeded: it took longer than ``timeout`` seconds; it was killed.
        Internal: it could not be run, or failed.
    """
    line = " ".join(str(word) for word in argv)
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=env,
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{line}: not done after {timeout:g} s") from None
    except OSError as error:
        raise Internal(f"{line}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Internal(f"{line}: exit status {done.returncode}: {said[-2000:]}")
    return done.stdout.decode(errors="replace")
