"""Reaching a unix socket of the host by a name that a guest may have a hand in.

In a volume that it can write to, a guest can put a link in a socket's place, or in a
directory's on the way, at any moment; followed, it would lead to every socket of the host.
So the directory is held open, links are not followed from there, and what is connected to
is what was looked at.

Source: unix(7); open(2), O_PATH; proc(5), /proc/self/fd.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

import trio

_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class HostSocket:
    """A socket at a place, whoever listens there when it is connected to.

    Attributes:
        path: its path, for messages.
        folder: descriptor of a directory (:func:`hold`), which is its user's.
        name: where it is below that.
    """

    path: str
    folder: int
    name: str

    async def connect(self) -> trio.SocketStream:
        """Connect to it as it is now.

        Raises:
            OSError: there is none, nobody listens, or it takes no streams.
        """
        place = await trio.to_thread.run_sync(self._open)
        try:
            sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            try:
                await sock.connect(f"/proc/self/fd/{place}")
            except BaseException:
                sock.close()
                raise
        finally:
            os.close(place)
        return trio.SocketStream(sock)

    def _open(self) -> int:
        *folders, name = self.name.split("/")
        held: list[int] = []
        try:
            for element in folders:
                above = held[-1] if held else self.folder
                held.append(os.open(element, _PLACE | os.O_DIRECTORY, dir_fd=above))
            place = os.open(name, _PLACE, dir_fd=held[-1] if held else self.folder)
        finally:
            for fd in held:
                os.close(fd)
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            os.close(place)
            raise ConnectionRefusedError(f"{self.path} is no socket")
        return place


def hold(directory: str) -> int:
    """A descriptor of a directory, to be closed by the caller.

    Raises:
        OSError: there is none.
    """
    return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
