"""Route netlink with the standard library: requests, dumps, attributes, removals.

Synchronous and small, because ``delete`` uses it and a pod's start waits for it. The
kernel answers while a request is being sent, so nothing here waits on anybody but it.

Source: netlink(7), rtnetlink(7), the kernel's uapi headers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self, TypeVar

    T = TypeVar("T")

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 22, 26, 30
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER = 44, 45

QDISCS = {"ingress": (0xFFFF_FFF1, 0xFFFF_0000), "root": (0xFFFF_FFFF, 0x1_0000)}
"""Where a qdisc of ours is on its link: parent and handle."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR = 0x10
_IFLA_IFNAME = 3
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_TRAFFIC = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 18
_DUMP_TRIES = 8
_TIMEOUT = 2.0  # seconds


def attribute(kind: int, data: bytes) -> bytes:
    """Encode one attribute, padded."""
    return _ATTRIBUTE.pack(len(data) + 4, kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes; of one that comes twice the last counts."""
    return dict(attribute_list(data))


def attribute_list(data: bytes) -> list[tuple[int, bytes]]:
    """Decode a run of attributes in order; what does not fit is left out."""
    found = []
    position = 0
    while position + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, position)
        if size < 4 or position + size > len(data):
            break
        found.append((kind & 0x3FFF, data[position + 4 : position + size]))
        position += size + 3 & ~3
    return found


def link_message(index: int, flags: int = 0, mask: int = 0) -> bytes:
    """Encode the fixed part of a link's message."""
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, mask)


def traffic_message(index: int, parent: int, handle: int = 0, info: int = 0) -> bytes:
    """Encode the fixed part of a qdisc's, class's or filter's message."""
    return _TRAFFIC.pack(socket.AF_UNSPEC, index, handle, parent, info)


def netns_id(fd: int) -> str:
    """Return what tells an open network namespace from every other that exists."""
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def in_netns(
    netns: str | int, function: Callable[[], T], timeout: float = _TIMEOUT, identity: str = ""
) -> T:
    """Call a function in a network namespace, in a thread of its own that ends with it.

    Args:
        netns: path of the namespace, or an open descriptor of it.
        function: what to call; must be quick, and must end by itself.
        timeout: seconds to wait for it.
        identity: what :func:`netns_id` said of it; "" takes whatever is at the path now.

    Raises:
        FileNotFoundError: there is no such namespace (any more).
        OSError: the kernel refuses, or it took too long; and what the function raises.
    """
    import threading

    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            _enter(netns, identity)
            results.append(function())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=enter, name="netns", daemon=True)
    thread.start()
    thread.join(timeout)
    if failures:
        raise failures[0]
    if not results:
        raise OSError(errno.ETIMEDOUT, f"network namespace {netns}: no answer in {timeout:g} s")
    return results[0]


def _enter(netns: str | int, identity: str) -> None:
    from shim import syscalls

    fd = netns if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if identity and netns_id(fd) != identity:  # another one by now
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), netns)
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    except OSError as error:
        if error.errno == errno.EINVAL:  # the file is there, its namespace is not
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), netns) from error
        raise
    finally:
        if fd != netns:
            os.close(fd)


class RouteSocket:
    """A route netlink socket; it stays in the namespace it was made in. Close it.

    Args:
        netns: path or descriptor of a network namespace, "" for the caller's own.
        identity: see :func:`in_netns`.

    Raises:
        FileNotFoundError: there is no such namespace (any more).
    """

    __slots__ = ("_sequence", "_socket")

    def __init__(self, netns: str | int = "", identity: str = "") -> None:
        self._socket = _socket() if netns == "" else in_netns(netns, _socket, _TIMEOUT, identity)
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Make a change.

        Raises:
            OSError: the kernel's refusal.
        """
        for _ in self._exchange(kind, flags | NLM_F_ACK, body):
            pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Ask for a list; gives the body of each message of the answer.

        Raises:
            OSError: the kernel's refusal.
        """
        for _ in range(_DUMP_TRIES):
            try:
                return list(self._exchange(kind, NLM_F_DUMP, body))
            except InterruptedError:  # the list changed while it was read
                continue
        raise OSError(errno.EBUSY, "the network keeps changing while it is read")

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        size = _HEADER.size + len(body)
        header = _HEADER.pack(size, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        torn = False
        while True:
            data = self._socket.recv(_BUFFER)
            position = 0
            while position + _HEADER.size <= len(data):
                size, answer, marks, sequence, _ = _HEADER.unpack_from(data, position)
                content = data[position + _HEADER.size : position + size]
                position += size + 3 & ~3
                if sequence != self._sequence:
                    continue
                torn = torn or bool(marks & _NLM_F_DUMP_INTR)
                if answer == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", content)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if answer == _NLMSG_DONE:
                    if torn:
                        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                    return
                yield content


def _socket() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)


def link_index(channel: RouteSocket, name: str) -> int:
    """Return a link's number, 0 when there is none of this name."""
    wanted = name.encode()
    for body in channel.dump(RTM_GETLINK, link_message(0)):
        if attributes(body[_LINK.size :]).get(_IFLA_IFNAME, b"").rstrip(b"\0") == wanted:
            return int(_LINK.unpack_from(body)[2])
    return 0


def delete_link(name: str, netns: str = "", identity: str = "") -> None:
    """Delete a link; no error when it or its namespace is gone.

    Args:
        name: the interface.
        netns: path of its network namespace, "" for the caller's own.
        identity: see :func:`in_netns`.

    Raises:
        OSError: the kernel refuses.
    """
    with _Removal(f"link {name}"), RouteSocket(netns, identity) as channel:
        body = link_message(0) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        channel.request(RTM_DELLINK, 0, body)


def delete_qdisc(link: str, parent: str, netns: str = "", identity: str = "") -> None:
    """Delete a link's qdisc with its filters; no error when any of it is gone.

    Args:
        link: the interface.
        parent: a key of :data:`QDISCS`.
        netns: path of its network namespace, "" for the caller's own.
        identity: see :func:`in_netns`.

    Raises:
        OSError: the kernel refuses.
    """
    with _Removal(f"{parent} qdisc of {link}"), RouteSocket(netns, identity) as channel:
        if index := link_index(channel, link):
            channel.request(RTM_DELQDISC, 0, traffic_message(index, *QDISCS[parent]))


class _Removal:
    """Takes what is gone already for a success, and says what could not be removed."""

    # A qdisc that is not there is "invalid" or "no entry", a link "no device".
    _GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, OSError) or error.errno is None:
            return False
        if error.errno in self._GONE:
            return True
        raise OSError(error.errno, f"delete {self._what}: {error.strerror}") from error
