"""Calling crun.

Source: crun(1); the OCI runtime command line.
"""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .children import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .children import Children

# Phrases by which crun's text tells that the request is at fault, not the guest.
_BAD_REQUEST = ("executable file", "not found", "No such file", "Permission denied", "exec format")


class Crun:
    """crun with its fixed options.

    Args:
        children: starts it.
        log_dir: an existing folder for its error texts.
        options: global options, such as the cgroup manager.
    """

    __slots__ = ("_children", "_count", "_log_dir", "_options", "_path")

    def __init__(self, children: Children, log_dir: str, options: Sequence[str]) -> None:
        self._children = children
        self._log_dir = log_dir
        self._options = options
        self._path = ""
        self._count = 0

    async def run(self, *args: str, stdio: Sequence[int | None] = (None, None, None)) -> None:
        """Run one command to its end.

        Args:
            args: the command and its arguments.
            stdio: descriptors for the three standard streams; None is /dev/null.

        Raises:
            TtrpcError: it failed; the text is crun's own.
        """
        if not self._path:
            self._path = find_program("crun")
        self._count += 1
        log = f"{self._log_dir}/crun-{self._count}.log"
        argv = [self._path, f"--log={log}", *self._options, *args]
        stdin, stdout, stderr = stdio
        try:
            _pid, ended = self._children.start(argv, stdin=stdin, stdout=stdout, stderr=stderr)
            code = await ended.wait()
            if code:
                raise _failure(args[0], code, _read_log(log))
        finally:
            try:
                os.unlink(log)
            except FileNotFoundError:
                pass


def _read_log(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return ""
    return "; ".join(line.partition("Z: ")[2] or line for line in lines)


def _failure(command: str, code: int, text: str) -> TtrpcError:
    kind = status.INTERNAL
    if command in ("create", "exec") and any(phrase in text for phrase in _BAD_REQUEST):
        kind = status.INVALID_ARGUMENT
    return TtrpcError(kind, f"crun {command}: {text or f'exit code {code} without a message'}")
