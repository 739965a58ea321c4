"""Child processes that end with us, however we end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, its creator, ends.

    Args:
        parent: its process id, as seen by the creator.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def spawn(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that dies with us.

    Args:
        argv: program and arguments.
        options: for :class:`subprocess.Popen`.
    """
    parent = os.getpid()
    setup: Callable[[], None] = lambda: die_with_parent(parent)  # noqa: E731
    return subprocess.Popen(argv, preexec_fn=setup, **options)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and collect it."""
    process.kill()
    process.wait()
