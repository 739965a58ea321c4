"""Start a helper or VMM process. Standard library only; blocking, but brief."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig, VmmError

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWNET = 0x40000000
MARKER_VARIABLE = "KATAPY_VM"
"""Environment variable of a VMM by which its VM's directory is known."""

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    netns: int | None = None,
    marker: str = "",
) -> subprocess.Popen[bytes]:
    """Start a program in its own session with a bare environment.

    Stdin is ``/dev/null``, stdout and stderr go to one pipe (``.stdout`` of the result),
    every descriptor that is not passed is closed. The process outlives its parent.

    Args:
        argv: program and arguments.
        pass_fds: descriptors the program gets, under the same numbers.
        netns: network namespace it runs in, as an open descriptor.
        marker: what it can be found by, where its command line has nothing of the kind;
            it is in its environment.

    Raises:
        InvalidConfig: the program is missing or can't be executed.
        VmmError: the namespace can't be entered.
    """
    if netns is None:
        return _popen(argv, pass_fds, marker)
    # A namespace belongs to a thread, so one that ends with the job enters it.
    outcome: list[subprocess.Popen[bytes] | Exception] = []

    def enter_and_start() -> None:
        try:
            _set_netns(netns)
            outcome.append(_popen(argv, pass_fds, marker))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=enter_and_start, name="netns-spawn")
    thread.start()
    thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _popen(argv: Sequence[str], pass_fds: Sequence[int], marker: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=pass_fds,
            start_new_session=True,
            env={**_ENVIRONMENT, MARKER_VARIABLE: marker} if marker else _ENVIRONMENT,
            cwd="/",
        )
    except OSError as error:
        raise InvalidConfig(f"can't start {argv[0]}: {error.strerror}") from error


def _set_netns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise VmmError(f"can't enter the network namespace: {os.strerror(number)}")
