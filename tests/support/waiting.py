"""Waiting for something the other side does, with a deadline and a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

INTERVAL = 0.05
"""Seconds between two looks."""

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str, *, timeout: float) -> T:
    """Call ``look`` until it returns something true and return that.

    Params: ``what`` names what is awaited, ``timeout`` in seconds.
    Raises: AssertionError when the deadline has passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {timeout:g} s (last seen: {value!r})")
        time.sleep(INTERVAL)
