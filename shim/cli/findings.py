"""What a check found: a level, what is so, and what to do about it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

_TOOL_TIMEOUT = 20.0


class Level(Enum):
    """How a finding bears on running pods."""

    OK = "OK"
    WARN = "WARN"  # works, but slower or with something missing
    FAIL = "FAIL"  # no pod can start


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check; ``advice`` says what to do, unless all is well."""

    name: str
    level: Level
    text: str
    advice: str = ""


Probe = Callable[[], Iterable[Finding]]


def collect(probes: Iterable[tuple[str, Probe]]) -> list[Finding]:
    """Run named probes; one that breaks becomes a FAIL and does not stop the others."""
    findings: list[Finding] = []
    for name, probe in probes:
        try:
            findings += probe()
        except Exception as error:
            text = f"could not be checked: {error or type(error).__name__}"
            findings.append(Finding(name, Level.FAIL, text, "see the error"))
    return findings


def tool_output(*argv: str) -> str:
    """Return what a tool prints, or "" when it is missing, fails or hangs.

    Args:
        argv: the command; its first word is looked up on the PATH.
    """
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
