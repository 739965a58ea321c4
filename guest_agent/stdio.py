"""Standard streams of container processes: pipes and pseudo-terminals.

Source: pipe(7), tty_ioctl(4); the OCI runtime's console socket protocol.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
from sys import byteorder
from time import monotonic

from .ioctls import FIONREAD, TIOCSWINSZ
from .loop import Lock
from .rpc import Spliced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .loop import Loop
    from .rpc import Payload

CHUNK = 1 << 18
PIPE_SIZE = 1 << 20
# What a process left behind may hold its output open no longer than this after its exit.
DRAIN_SECONDS = 0.5
# Less than this is cheaper to copy than to splice.
SPLICE_MIN = 1 << 14
# Output that trickles in is gathered for a moment, up to this many bytes.
GATHER = 1 << 16
GATHER_SECONDS = 0.001
_SCM_RIGHTS_SPACE = 64


class Output:
    """The agent's end of a process's standard output or error.

    The process's own output is complete once it has exited; a descendant that keeps
    the stream open gets DRAIN_SECONDS more, then the end is declared as soon as
    nothing is waiting to be read (at most one pipe's worth later). `taken` counts the
    bytes that have left the pipe.
    """

    __slots__ = (
        "_budget",
        "_busy",
        "_closing",
        "_cut",
        "_fd",
        "_last",
        "_lock",
        "_loop",
        "_pending",
        "_terminal",
        "taken",
    )

    def __init__(self, loop: Loop, fd: int, terminal: bool = False) -> None:
        os.set_blocking(fd, False)
        loop.watch(fd)
        self._loop = loop
        self._fd = fd
        self._terminal = terminal
        self._lock = Lock(loop)
        self._pending = b""
        self._cut: float | None = None
        self._budget = PIPE_SIZE
        self._busy = self._closing = False
        self._last = 0.0
        self.taken = 0

    @property
    def ended(self) -> bool:
        """Whether everything was read."""
        return self._fd < 0 and not self._pending

    async def read(self, limit: int = CHUNK) -> bytes:
        """Wait for output and return up to `limit` bytes of it; b"" at its end."""
        async with self._lock:
            return await self._read(limit)

    async def _read(self, limit: int) -> bytes:
        while True:
            if self._pending:
                data, self._pending = self._pending[:limit], self._pending[limit:]
                return data
            if self._fd < 0:
                return b""
            try:
                data = os.read(self._fd, limit)
            except BlockingIOError:
                await self._more()
                continue
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                if self._cut is None:  # no process has the terminal open, one may yet open it
                    await self._loop.wait_readable(self._fd)
                    continue
                data = b""
            self._count(len(data))
            return data

    async def forward(self, limit: int, send: Callable[[Payload], Awaitable[None]]) -> int:
        """Wait for output and send up to `limit` bytes of it.

        Bulk output is not read but spliced: the kernel hands the pipe's pages over to
        the port without copying them.

        Args:
            limit: bytes, more than 0.
            send: sends one payload, or raises without having sent anything of it.

        Returns:
            The number of bytes sent; 0 at the end.
        """
        async with self._lock:
            waiting = self._waiting()
            if 0 < waiting < GATHER and monotonic() - self._last < GATHER_SECONDS:
                # A process that writes little by little: give it time for more.
                await self._loop.sleep(GATHER_SECONDS)
                waiting = self._waiting()
            size = min(waiting, limit)
            if size >= SPLICE_MIN:
                self._busy = True
                try:
                    await send(Spliced(self._fd, size))
                finally:
                    self._busy = False
                    if self._closing:
                        self.close()
                self._count(size)
            else:
                data = await self._read(limit)
                size = len(data)
                if size:
                    try:
                        await send(data)
                    except BaseException:  # it was not sent: keep it for the next reader
                        self._pending = data + self._pending
                        raise
            self._last = monotonic()
            return size

    def _waiting(self) -> int:
        """Bytes in the pipe; 0 as well when they can't be counted or have to be read."""
        if self._fd < 0 or self._pending or self._terminal:
            return 0
        return int.from_bytes(fcntl.ioctl(self._fd, FIONREAD, bytes(4)), byteorder)

    async def _more(self) -> None:
        if self._cut is None:
            await self._loop.wait_readable(self._fd)
            return
        left = self._cut - monotonic()
        if left <= 0 or not await self._loop.wait_readable(self._fd, left):
            self.close()

    def _count(self, size: int) -> None:
        self.taken += size
        if self._cut is not None and monotonic() > self._cut:
            self._budget -= size
        if not size or self._budget <= 0:
            self.close()

    def process_exited(self) -> None:
        """Start the time after which a descendant can't hold the stream open."""
        self._cut = monotonic() + DRAIN_SECONDS
        if self._fd >= 0:
            self._loop.nudge(self._fd)

    def close(self) -> None:
        """Close the descriptor, once nothing is being spliced from it; readers see the end."""
        self._closing = True
        if self._fd >= 0 and not self._busy:
            fd, self._fd = self._fd, -1
            self._loop.forget(fd)
            os.close(fd)


class Input:
    """The agent's end of a process's standard input."""

    __slots__ = ("_fd", "_lock", "_loop", "terminal")

    def __init__(self, loop: Loop, fd: int, terminal: bool) -> None:
        os.set_blocking(fd, False)
        loop.watch(fd)
        self._loop = loop
        self._fd = fd
        self._lock = Lock(loop)
        self.terminal = terminal

    async def write(self, data: bytes) -> None:
        """Hand all of the data to the process, waiting as long as it doesn't read.

        Raises:
            BrokenPipeError: the process closed its standard input or is gone.
        """
        rest = memoryview(data)
        async with self._lock:
            while rest:
                if self._fd < 0:
                    raise BrokenPipeError("standard input is closed")
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    await self._loop.wait_writable(self._fd)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    raise BrokenPipeError("no process has the terminal open") from None

    async def finish(self) -> None:
        """Give the process end-of-file, after what is being written; a terminal has none."""
        async with self._lock:
            if not self.terminal:
                self.close()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal.

        Raises:
            OSError: it is closed.
        """
        size = b"".join(n.to_bytes(2, byteorder) for n in (rows, columns, 0, 0))
        fcntl.ioctl(self._fd, TIOCSWINSZ, size)

    def close(self) -> None:
        """Close the descriptor; writers get BrokenPipeError."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.forget(fd)
            os.close(fd)


class Pipes:
    """Three pipes for a process about to be started."""

    __slots__ = ("_ours", "child")

    def __init__(self, size: int) -> None:
        stdin, stdout, stderr = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
        self.child: list[int] = [stdin[0], stdout[1], stderr[1]]
        self._ours: list[int] = [stdin[1], stdout[0], stderr[0]]
        for fd in self._ours:
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
            except OSError:
                pass  # over the user's limit: smaller pipes are slower, not wrong

    async def streams(self, loop: Loop) -> tuple[Input, Output, Output | None]:
        """The agent's ends; ownership passes to the caller."""
        stdin, stdout, stderr = self._ours
        self._ours = []
        return Input(loop, stdin, False), Output(loop, stdout), Output(loop, stderr)

    @property
    def options(self) -> list[str]:
        """What crun has to be told."""
        return []

    def close(self) -> None:
        """Close what nobody took over, the child's ends in any case."""
        for fd in self.child + self._ours:
            os.close(fd)
        self.child, self._ours = [], []


class Console:
    """A console socket, on which crun sends the master of a process's terminal."""

    __slots__ = ("_listener", "_path")

    child: tuple[None, None, None] = (None, None, None)

    def __init__(self, path: str) -> None:
        self._path = path
        kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._listener = _socket.socket(_socket.AF_UNIX, kind)
        self._listener.bind(path)
        self._listener.listen(1)

    @property
    def options(self) -> list[str]:
        """What crun has to be told."""
        return [f"--console-socket={self._path}"]

    async def streams(self, loop: Loop) -> tuple[Input, Output, Output | None]:
        """Receive the terminal, after crun has ended; ownership passes to the caller.

        Raises:
            OSError: crun sent none.
        """
        fd, _address = self._listener._accept()  # type: ignore[attr-defined]
        connection = _socket.socket(fileno=fd)
        try:
            flags = _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
            _data, control, _flags, _peer = connection.recvmsg(4096, _SCM_RIGHTS_SPACE, flags)
        finally:
            connection.close()
        for level, kind, payload in control:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                master = int.from_bytes(payload[:4], byteorder)
                return Input(loop, os.dup(master), True), Output(loop, master, True), None
        raise OSError(errno.ENOMSG, "crun sent no terminal")

    def close(self) -> None:
        """Close and remove the socket."""
        self._listener.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
