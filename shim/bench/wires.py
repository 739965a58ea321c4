"""The host's end of two networks: a pod's, by a veth pair, and a bare VM's, a tap.

Both lead into one namespace of the benchmark's own, the world, where the peers listen.
What is between a guest and its peer is then what a pod has more: the redirect between
the tap and the veth pair. Made with ip(8), as an administrator would.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from shim.bench.deadline import run
from shim.errors import Internal, KatapyError
from shim.net.netlink import in_netns

POD_ADDRESS, POD_PEER = "192.0.2.2/24", "192.0.2.1"
BARE_ADDRESS, BARE_PEER = "198.51.100.2/24", "198.51.100.1"
BARE_MAC = "02:00:00:00:02:02"
TAP = "bare0"
PORT = 7000

_TIMEOUT = 30.0
_BLOCK = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wires:
    """The namespaces.

    Args:
        pod: name of the pod's.
        world: name of the one where the peers are.
    """

    pod: str
    world: str

    @property
    def pod_path(self) -> str:
        """The path of the pod's namespace."""
        return f"/run/netns/{self.pod}"

    def listen(self) -> socket.socket:
        """Listen in the world, at both peers' addresses."""
        path = f"/run/netns/{self.world}"
        listener = in_netns(path, lambda: socket.socket(socket.AF_INET))
        listener.settimeout(_TIMEOUT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", PORT))
        listener.listen()
        return listener


@contextmanager
def wired(token: str) -> Iterator[Wires]:
    """Make both networks for the length of the block.

    Args:
        token: begins the names of the namespaces.

    Raises:
        Internal: there is no ip(8), or the host refuses.
    """
    wires = Wires(f"{token}-pod", f"{token}-world")
    with ExitStack() as stack:
        for name in (wires.pod, wires.world):
            stack.enter_context(_namespace(name))
        pair = ("type", "veth", "peer", "name", "pod", "netns", wires.world)
        _ip("-n", wires.pod, "link", "add", "eth0", *pair)
        _ip("-n", wires.world, "tuntap", "add", TAP, "mode", "tap")
        for netns, link, address in (
            (wires.pod, "eth0", POD_ADDRESS),
            (wires.world, "pod", f"{POD_PEER}/24"),
            (wires.world, TAP, f"{BARE_PEER}/24"),
        ):
            _ip("-n", netns, "addr", "add", address, "dev", link)
            _ip("-n", netns, "link", "set", link, "up")
        yield wires


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        yield
    finally:
        with suppress(KatapyError):
            _ip("netns", "del", name)


def _ip(*words: str) -> None:
    run(["ip", *words], timeout=_TIMEOUT)


@contextmanager
def _connection(listener: socket.socket, client: Callable[[], object]) -> Iterator[socket.socket]:
    """What a client connects, which runs in a thread and must have ended at the end.

    Raises:
        Internal: nothing connects, or it breaks; what the client raises comes first.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client)
        try:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(_TIMEOUT)
                yield peer
        except OSError as error:
            running.result()
            raise Internal(f"TCP between guest and host: {error}") from error
        running.result()


def receive(
    listener: socket.socket,
    client: Callable[[], object],
    lead: int,
    size: int,
    stamp: Callable[[], T],
) -> tuple[T, T]:
    """Receive ``lead`` + ``size`` bytes; returns stamps of the beginning and end of the latter.

    Args:
        listener: where the client connects.
        client: makes it connect and send; called in a thread.
        lead: bytes that don't count.
        size: bytes that do.
        stamp: called at either end.

    Raises:
        Internal: nothing connects, or fewer bytes come.
    """
    with _connection(listener, client) as peer:
        buffer = bytearray(_BLOCK)
        for count in (lead, size):
            begin = stamp()
            while count:
                if not (got := peer.recv_into(buffer, min(count, _BLOCK))):
                    raise Internal(f"a connection ended {count} bytes too early")
                count -= got
        return begin, stamp()


def send(
    listener: socket.socket,
    client: Callable[[], object],
    lead: int,
    size: int,
    stamp: Callable[[], T],
) -> tuple[T, T]:
    """Send ``lead`` + ``size`` bytes; otherwise like :func:`receive`.

    The end is when the client has closed the connection, which it does after the last byte.
    """
    block = memoryview(bytes(_BLOCK))
    with _connection(listener, client) as peer:
        for count in (lead, size):
            begin = stamp()
            for offset in range(0, count, _BLOCK):
                peer.sendall(block[: count - offset])
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1)
        return begin, stamp()
