"""Which ports of the guest somebody listens on: for pods that stand in for the host, and
for port-forward, whose clients dial the pod's loopback on the host.

The kernel tells nobody of a new listener, so its tables are read now and then, but only
while the host waits for an answer.

Source: proc(5) on /proc/net/tcp; the kernel's include/net/tcp_states.h.
"""

from __future__ import annotations

from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from protos.lite import Message

    from .loop import Loop

_INTERVAL = 0.25
_LOCAL_INTERVAL = 1.0  # every pod of CRI waits so, mostly for nothing: wake the guest seldom
_TABLES = (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07"))  # listening, unconnected
_MAPPED = bytes(10) + b"\xff\xff"
_LOOPBACK6 = bytes(15) + b"\1"
_ANY = (bytes(4), bytes(16), bytes(10) + b"\xff\xff" + bytes(4))
_PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"

Listener = tuple[str, int]
"""Protocol, "tcp" or "udp", and port."""


class Listeners:
    """The guest's listening sockets."""

    __slots__ = ("_loop",)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def extension(self) -> dict[str, Any]:
        """The handlers of our extension in this class."""
        return {"WaitListeners": self.wait}

    async def wait(self, request: Message) -> Mapping[str, Any]:
        """Extension.WaitListeners: answer when they are others than the host knows."""
        known = {(entry["protocol"], entry["port"]) for entry in request["known"]}
        local = request["local"]
        current, interval = (_local, _LOCAL_INTERVAL) if local else (_current, _INTERVAL)
        while (found := current()) == known:
            await self._loop.sleep(interval)
        return {"now": [{"protocol": name, "port": port} for name, port in sorted(found)]}


def _current() -> set[Listener]:
    low, high = (int(word) for word in _read(_PORT_RANGE).split())
    found = set()
    for table, state in _TABLES:
        for port in listening(_read(f"/proc/net/{table}").splitlines()[1:], state):
            # An unconnected UDP socket with a port of the kernel's choice is a client's.
            if table.startswith("tcp") or not low <= port <= high:
                found.add((table[:3], port))
    return found


def _local() -> set[Listener]:
    return {
        ("tcp", port)
        for table, state in _TABLES[:2]
        for port in listening(_read(f"/proc/net/{table}").splitlines()[1:], state, local=True)
    }


def listening(lines: Iterable[str], state: str, *, local: bool = False) -> Iterator[int]:
    """Ports of a table's sockets in a state, without those the loopback alone reaches.

    Args:
        lines: the table's, without its head.
        state: as the table spells it.
        local: without those that the loopback doesn't reach instead.
    """
    for line in lines:
        fields = line.split()
        text, _, port = fields[1].partition(":")
        if fields[3] != state:
            continue
        address = _packed(text)
        if address in _ANY or _is_loopback(address) == local:
            yield int(port, 16)


def _packed(text: str) -> bytes:
    """An address as in a packet; each word of the text is in the machine's byte order."""
    data = bytes.fromhex(text)
    if byteorder == "big":
        return data
    return b"".join(data[n : n + 4][::-1] for n in range(0, len(data), 4))


def _is_loopback(address: bytes) -> bool:
    return address.removeprefix(_MAPPED)[:1] == b"\x7f" or address == _LOOPBACK6


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:  # no IPv6
        return ""
