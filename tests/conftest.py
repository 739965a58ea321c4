"""Options and marks of the whole suite."""

from __future__ import annotations

import pytest

DEFAULT_RUNTIME = "io.containerd.katapy.v2"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("katapy")
    group.addoption(
        "--runtime",
        default=DEFAULT_RUNTIME,
        help="containerd runtime for the end-to-end tests (another one shows what is ours)",
    )
    group.addoption(
        "--containerd",
        default="1.6,1.7,2.1",
        help="containerd series to test with, by commas; the full list runs on the first of "
        "1.7, 2.1, 1.6 among them, the core list on all",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: end-to-end test run on every containerd series")
