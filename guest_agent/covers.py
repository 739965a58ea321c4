"""The agent's sockets over those of the host, in a directory that the guest shares with it.

There the host's socket is an inode that nobody in the guest listens at. A bind mount of
the agent's leaves it where it is, and containers that follow the agent's mounts see it.

Source: unix(7); mount_namespaces(7). A mount goes when the host takes its place away.
"""

from __future__ import annotations

import os
import stat

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import libc
from .files import SHARED, open_place


class Cover:
    """One socket over another.

    Args:
        socket: path of the agent's.
        place: path of the host's, below the share.
    """

    __slots__ = ("_fd", "_place", "_socket")

    def __init__(self, socket: str, place: str) -> None:
        self._socket = socket
        self._place = os.path.normpath(place)
        self._fd = -1

    def put(self) -> None:
        """Mount it, anew if it was mounted before.

        Raises:
            TtrpcError: INVALID_ARGUMENT, there is no socket at the place.
            OSError: it can't be mounted.
        """
        self.take_off()
        if not self._place.startswith(SHARED + "/"):
            raise TtrpcError(status.INVALID_ARGUMENT, f"{self._place} is not below {SHARED}")
        below = self._place[len(SHARED) + 1 :]
        place = open_place(SHARED, below)
        try:
            if not stat.S_ISSOCK(os.fstat(place).st_mode):
                raise TtrpcError(status.INVALID_ARGUMENT, f"{self._place} is no socket")
            libc.mount(self._socket, f"/proc/self/fd/{place}", "", libc.MS_BIND)
        finally:
            os.close(place)
        # By this it is unmounted, wherever its path leads then.
        self._fd = open_place(SHARED, below)

    def take_off(self) -> None:
        """Unmount it. Idempotent."""
        if self._fd < 0:
            return
        try:
            libc.umount(f"/proc/self/fd/{self._fd}", libc.MNT_DETACH)
        except OSError:
            pass  # it went with its place
        finally:
            os.close(self._fd)
            self._fd = -1
