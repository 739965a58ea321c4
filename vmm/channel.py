"""Reach a guest port from the host: virtio-serial, hybrid vsock, AF_VSOCK.

Each function retries while the guest is still coming up and never gives up by itself;
the caller sets the deadline and races it against the end of the VM.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import trio

from vmm.errors import ChannelClosed, VmmError

if TYPE_CHECKING:
    from pathlib import Path

PREFACE_MAGIC = b"\xffKATAPY\xff"
PREFACE_SIZE = 24
_PREFACE_INTERVALS = (0.1, 0.25, 0.5, 1.0)
_RETRY_INTERVALS = (0.01, 0.02, 0.05, 0.1, 0.2)
_OK_LINE_MAX = 32


def make_preface() -> bytes:
    """Return the 24 bytes that begin a connection on a port that has none of its own.

    0xff can't begin a ttrpc frame, so a peer at a frame boundary recognises it.
    """
    return PREFACE_MAGIC + os.urandom(PREFACE_SIZE - len(PREFACE_MAGIC))


class EchoScanner:
    """Finds the peer's echo of a preface in a stream and keeps what follows it.

    The peer echoes each preface it gets, so what counts is the echo of the *last* one
    sent: everything before it belongs to the past.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self.expected = b""

    def expect(self, preface: bytes) -> None:
        """Wait for this preface from now on."""
        self.expected = preface

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return what followed the echo, or None while it has not come."""
        self._buffer += data
        found = self._buffer.find(self.expected)
        if found >= 0:
            return self._buffer[found + PREFACE_SIZE :]
        self._buffer = self._buffer[-(PREFACE_SIZE - 1) :]
        return None


async def dial_serial(path: Path) -> trio.SocketStream:
    """Connect to a virtio-serial port's socket and make the guest begin anew.

    Args:
        path: the listening socket that the VMM serves for the port.

    Raises:
        ChannelClosed: the socket is not there, or the VMM closed it.
    """
    stream = await connect_unix(path)
    try:
        await _exchange_preface(stream, path)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _exchange_preface(stream: trio.SocketStream, path: Path) -> None:
    scanner = EchoScanner()
    rounds = 0
    while True:
        interval = _PREFACE_INTERVALS[min(rounds, len(_PREFACE_INTERVALS) - 1)]
        rounds += 1
        scanner.expect(make_preface())
        try:
            await stream.send_all(scanner.expected)
            with trio.move_on_after(interval):
                while True:
                    data = await stream.receive_some(65536)
                    if not data:
                        raise ChannelClosed(f"the VMM closed the guest port {path}")
                    rest = scanner.feed(data)
                    if rest == b"":
                        return
                    if rest is not None:
                        raise VmmError(f"the guest spoke before it was asked on {path}")
        except trio.BrokenResourceError:
            raise ChannelClosed(f"the VMM closed the guest port {path}") from None


async def dial_hybrid(path: Path, port: int) -> trio.SocketStream:
    """Connect to a guest vsock port through a VMM's or daemon's unix socket.

    Args:
        path: the unix socket.
        port: vsock port the guest listens on.

    Source: Firecracker docs/vsock.md, host-initiated connections.
    """
    rounds = 0
    while True:
        # "Nobody listens yet" shows as a refused, missing or silently closed connection.
        try:
            stream = await connect_unix(path)
        except ChannelClosed:
            pass
        else:
            try:
                if await _shake_hands(stream, port):
                    return stream
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            await stream.aclose()
        await trio.sleep(_RETRY_INTERVALS[min(rounds, len(_RETRY_INTERVALS) - 1)])
        rounds += 1


async def _shake_hands(stream: trio.SocketStream, port: int) -> bool:
    line = b""
    try:
        await stream.send_all(b"CONNECT %d\n" % port)
        while not line.endswith(b"\n"):
            # A byte at a time: the guest's own first bytes may follow at once.
            byte = await stream.receive_some(1)
            if not byte:
                return False
            line += byte
            if len(line) > _OK_LINE_MAX:
                raise VmmError(f"hybrid vsock answered {line!r} to CONNECT")
    except trio.BrokenResourceError:
        return False
    word, _, number = line.rstrip(b"\n").partition(b" ")
    if word != b"OK" or not number.isdigit():
        raise VmmError(f"hybrid vsock answered {line!r} to CONNECT")
    return True


async def dial_vsock(cid: int, port: int) -> trio.SocketStream:
    """Connect to a guest vsock port through the host kernel.

    Args:
        cid: the guest's context id.
        port: vsock port the guest listens on.
    """
    rounds = 0
    while True:
        sock = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            await sock.connect((cid, port))
            return trio.SocketStream(sock)
        except (ConnectionError, TimeoutError):
            sock.close()
        except OSError as error:
            sock.close()
            # The device has no running guest behind it yet.
            if error.errno not in (errno.ENODEV, errno.EHOSTUNREACH):
                raise VmmError(f"can't dial vsock {cid}:{port}: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        await trio.sleep(_RETRY_INTERVALS[min(rounds, len(_RETRY_INTERVALS) - 1)])
        rounds += 1


async def connect_unix(path: Path) -> trio.SocketStream:
    """Connect to a unix stream socket.

    Raises:
        ChannelClosed: nobody listens there.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise ChannelClosed(f"can't connect to {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
