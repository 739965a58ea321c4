"""Listening unix sockets that are handed to a VMM or a daemon. Standard library only."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig

if TYPE_CHECKING:
    from pathlib import Path

PATH_MAX = 107  # bytes of a unix socket path, without its NUL
_BACKLOG = 4


def check_length(path: Path) -> None:
    """Raise unless a path fits into a socket's address.

    Raises:
        InvalidConfig: it is too long.
    """
    if len(os.fsencode(path)) > PATH_MAX:
        raise InvalidConfig(f"socket path over {PATH_MAX} bytes: {path}")


def listen(path: Path) -> socket.socket:
    """Bind and listen, for this user only; a stale socket is replaced.

    Raises:
        InvalidConfig: the path is too long, or nothing can be bound there.
    """
    check_length(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidConfig(f"can't listen on {path}: {error.strerror}") from error
    return listener
