"""Command-line options that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shim.config.model import Config


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file, in place of the one that is found",
    )


def configuration(file: Path | None) -> Config:
    """Load the configuration from ``file``, or the one a shim without options would use.

    Raises ConfigError as :func:`shim.config.load.load_config` does.
    """
    from shim.config.load import FILE_VARIABLE, load_config

    if file is None:
        return load_config()
    return load_config(environ={FILE_VARIABLE: str(file.absolute())})
