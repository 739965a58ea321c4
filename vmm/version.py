"""The version a VMM's binary reports, asked once. Standard library only; blocking."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vmm.errors import InvalidConfig

_TIMEOUT = 20
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)(?:\.(\d+))?")


class Version(NamedTuple):
    """Major, minor and micro; compares as one would expect, with plain tuples too."""

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


def parse_version(text: str) -> Version | None:
    """Return the first version in a text (``Firecracker v1.12.1``), None without one."""
    found = _VERSION.search(text)
    return Version(*(int(part or 0) for part in found.groups())) if found else None


def find_program(configured: str | Path, default: str, key: str) -> Path:
    """Return a program's path.

    Args:
        configured: a path or a name to look up; empty takes the default.
        default: its usual name.
        key: what to configure when it is not found.

    Raises:
        InvalidConfig: there is none.
    """
    name = str(configured) or default
    found = shutil.which(name)
    if found is None:
        raise InvalidConfig(f"no program {name}; install it or configure {key}")
    return Path(found).resolve()


def ask_version(binary: Path) -> Version:
    """Return what ``--version`` says.

    Raises:
        InvalidConfig: it does not run, or says no version.
    """
    try:
        status = binary.stat()
    except OSError as error:
        raise InvalidConfig(f"{binary}: {error.strerror}") from error
    return _ask(str(binary), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _ask(binary: str, _size: int, _changed: int) -> Version:
    try:
        done = subprocess.run(
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise InvalidConfig(f"can't run {binary}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise InvalidConfig(f"{binary} --version: no answer within {_TIMEOUT} s") from error
    version = parse_version(done.stdout)
    if done.returncode != 0 or version is None:
        said = (done.stdout + done.stderr).strip()[-300:]
        raise InvalidConfig(f"{binary} --version: exit code {done.returncode}, says {said!r}")
    return version
