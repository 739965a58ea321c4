"""What a stand-in is told besides its command line, and its options' parser."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.standins import schema

ROOT = Path(__file__).resolve().parents[2]
ROOT_VARIABLE = "KATAPY_STANDIN_ROOT"


def chosen_version(variable: str, default: str) -> str:
    """Return the version to play, from the environment."""
    return os.environ.get(variable) or default


def nearest_table(vmm: str, version: str) -> str:
    """Return the newest version with a table that is not newer than ``version``."""

    def key(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    known = sorted(schema.versions(vmm), key=key)
    return max((v for v in known if key(v) <= key(version)), key=key, default=known[0])


class BadArguments(Exception):
    """A command line the program does not take."""


def parse(argv: Sequence[str], takes_value: Mapping[str, bool]) -> dict[str, list[str]]:
    """Parse ``--name value`` options as Firecracker and its jailer do; ``--`` ends them.

    Args:
        argv: the command line without the program.
        takes_value: the options, and whether each has a value.

    Returns:
        Values by name; what follows ``--`` under ``--``.

    Raises:
        BadArguments: unknown option, missing value.
    """
    found: dict[str, list[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            found["--"] = words
            break
        name = word.removeprefix("--")
        if not word.startswith("--") or name not in takes_value:
            raise BadArguments(f"Found argument '{name}' which wasn't expected")
        if takes_value[name]:
            if not words or words[0].startswith("--"):
                raise BadArguments(f"The argument '{name}' requires a value, but none was supplied")
            found.setdefault(name, []).append(words.pop(0))
        else:
            found[name] = []
    return found
