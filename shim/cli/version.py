"""``katapy version``."""

from __future__ import annotations

import argparse

from shim.version import VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: none."""


def run(arguments: argparse.Namespace) -> int:
    """Print the version; always 0."""
    print(f"katapy {VERSION}")
    return 0
