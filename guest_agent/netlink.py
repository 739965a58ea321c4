"""Route netlink: requests, dumps and attributes.

Source: netlink(7), rtnetlink(7), the kernel's uapi headers.
"""

from __future__ import annotations

import _socket
import os
from _struct import pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NETLINK_ROUTE = 0
_BUFFER = 1 << 16

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH = 28


def attribute(kind: int, data: bytes) -> bytes:
    """Encode one attribute, padded."""
    return pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes."""
    found = {}
    position = 0
    while position + 4 <= len(data):
        size, kind = unpack_from("=HH", data, position)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[position + 4 : position + size]
        position += size + 3 & ~3
    return found


class Netlink:
    """A route netlink socket. The kernel answers while the request is being sent."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self) -> None:
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self._socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, payload: bytes) -> None:
        """Make a change.

        Raises:
            OSError: the kernel's refusal.
        """
        for _message in self._exchange(kind, flags | NLM_F_ACK, payload):
            pass

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Ask for a list; gives the body of each message of the answer."""
        return list(self._exchange(kind, NLM_F_DUMP, payload))

    def _exchange(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        size = 16 + len(payload)
        header = pack("=IHHII", size, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = self._socket.recv(_BUFFER)
            position = 0
            while position + 16 <= len(data):
                size, answer, _flags, sequence, _port = unpack_from("=IHHII", data, position)
                body = data[position + 16 : position + size]
                position += size + 3 & ~3
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    code = -unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if answer == _NLMSG_DONE:
                    return
                yield body
