"""Delete one network link with the standard library; ``delete`` can't wait for pyroute2.

Source: rtnetlink(7), netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_RTM_DELLINK = 17
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4
_NLMSG_ERROR = 2
_IFLA_IFNAME = 3
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_TIMEOUT = 2.0  # seconds


def delete_link(name: str, netns: str = "") -> None:
    """Delete a link; no error when it or its namespace is gone.

    Args:
        name: the interface.
        netns: path of its network namespace, "" for the caller's own.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        channel = _open(netns)
    except FileNotFoundError:
        return
    with channel:
        channel.settimeout(_TIMEOUT)
        text = name.encode() + b"\0"
        attribute = struct.pack("=HH", 4 + len(text), _IFLA_IFNAME) + text
        attribute += bytes(-len(attribute) % 4)
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute
        flags = _NLM_F_REQUEST | _NLM_F_ACK
        channel.send(_HEADER.pack(_HEADER.size + len(body), _RTM_DELLINK, flags, 1, 0) + body)
        answer = channel.recv(65536)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _HEADER.size)
    if kind != _NLMSG_ERROR or code not in (0, -errno.ENODEV):
        raise OSError(-code, f"delete link {name}: {os.strerror(-code)}")


def _open(netns: str) -> socket.socket:
    """A route netlink socket; a socket stays in the namespace it was made in."""
    if not netns:
        return _socket()
    import threading

    from shim import syscalls

    made: list[socket.socket | OSError] = []

    def enter() -> None:  # in a thread of its own, which ends in the other namespace
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
            finally:
                os.close(fd)
            made.append(_socket())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    if not made:
        raise OSError(errno.ETIMEDOUT, f"entering {netns} took more than {_TIMEOUT:g} s")
    if isinstance(made[0], OSError):
        if made[0].errno == errno.EINVAL:  # the file is there, its namespace is not
            raise FileNotFoundError(netns)
        raise made[0]
    return made[0]


def _socket() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
