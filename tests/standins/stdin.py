"""Standard input, passed on to a guest's console."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.standins.qemu import Qemu
from tests.standins.server import Loop


def forward(loop: Loop, target: Callable[[], Qemu | None]) -> None:
    """Pass standard input on from now on.

    Args:
        loop: what watches it.
        target: returns the QEMU that gets it; while there is none, it is dropped.
    """

    def readable() -> None:
        data = os.read(0, 4096)
        qemu = target()
        if not data:
            loop.forget(0)
        elif qemu is not None:
            qemu.type(data)

    try:
        loop.watch(0, readable)
    except (OSError, ValueError):
        return  # a file, or nothing at all
