"""QMP client on trio: one reader, replies matched by id, events to every subscriber.

Subscribe before sending the command whose event you wait for: an event may arrive
before the command's reply.
"""

from __future__ import annotations

import array
import itertools
import socket
from typing import TYPE_CHECKING, Any

import trio

from vmm.broadcast import Broadcast, Subscription
from vmm.errors import ApiError, ControlTimeout, VmmGone
from vmm.qemu.qmp_codec import (
    Failure,
    Greeting,
    QmpDecoder,
    QmpEvent,
    QmpProtocolError,
    Reply,
    encode_command,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECEIVE_SIZE = 65536
_SEND_TIMEOUT = 5
DEFAULT_TIMEOUT = 10.0


class _Call:
    """A command whose reply is outstanding."""

    __slots__ = ("done", "outcome")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Reply | Failure | None = None


class QmpClient:
    """One QMP connection.

    Run :meth:`run` in a nursery, then :meth:`negotiate` once, then :meth:`execute`.

    Args:
        stream: connected unix socket to the monitor; closed by :meth:`run`.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._events: Broadcast[QmpEvent] = Broadcast()
        self._calls: dict[int, _Call] = {}
        self._ids = itertools.count(1)
        self._fd_names = itertools.count(1)
        self._send_lock = trio.Lock()
        self._greeted = trio.Event()
        self._closed = False
        self.greeting: Greeting | None = None

    async def run(self) -> None:
        """Read until the connection ends; then fail what is outstanding. Never raises I/O errors.

        Raises:
            QmpProtocolError: the peer does not speak QMP.
        """
        decoder = QmpDecoder()
        try:
            while data := await self._stream.receive_some(_RECEIVE_SIZE):
                for message in decoder.feed(data):
                    self._dispatch(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._closed = True
            self._greeted.set()
            for call in self._calls.values():
                call.done.set()
            self._events.close()
            with trio.CancelScope(shield=True):
                await self._stream.aclose()

    def _dispatch(self, message: Greeting | Reply | Failure | QmpEvent) -> None:
        if isinstance(message, QmpEvent):
            self._events.publish(message)
        elif isinstance(message, Greeting):
            self.greeting = message
            self._greeted.set()
        elif (call := self._calls.get(message.id)) is not None:
            call.outcome = message
            call.done.set()

    def subscribe(self) -> Subscription[QmpEvent]:
        """Return the events from now on; the iteration ends with the connection."""
        return self._events.subscribe()

    async def negotiate(self, timeout: float) -> Greeting:
        """Leave negotiation mode. Its success means that the VM's devices were created.

        Args:
            timeout: seconds for greeting and reply together.

        Raises:
            ControlTimeout: no answer in time.
            VmmGone: the connection ended.
        """
        with trio.move_on_after(timeout):
            await self._greeted.wait()
            if self.greeting is None:
                raise VmmGone("the VMM closed its control socket before greeting")
            await self.execute("qmp_capabilities", timeout=timeout)
            return self.greeting
        raise ControlTimeout(f"no QMP answer within {timeout:g} s")

    async def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Any:
        """Run one command and return its value.

        Args:
            command: name of the command.
            arguments: its arguments.
            fds: file descriptors that travel with the command's bytes; copies are passed.
            timeout: seconds to wait for the reply.

        Raises:
            ApiError: QEMU refused the command.
            ControlTimeout: no reply in time. The command may still take effect.
            VmmGone: the connection ended before the reply.
        """
        command_id = next(self._ids)
        call = self._calls[command_id] = _Call()
        try:
            with trio.move_on_after(timeout) as scope:
                await self._send(encode_command(command, arguments, command_id), fds)
                if not self._closed:
                    await call.done.wait()
        finally:
            del self._calls[command_id]
        if call.outcome is None:
            if scope.cancelled_caught:
                raise ControlTimeout(f"QEMU did not answer {command} within {timeout:g} s")
            raise VmmGone(f"the VMM closed its control socket during {command}")
        if isinstance(call.outcome, Failure):
            raise ApiError(command, call.outcome.kind, call.outcome.description, arguments)
        return call.outcome.value

    async def pass_fd(self, fd: int) -> str:
        """Give QEMU a copy of ``fd`` and return the name it knows it by."""
        # A name used twice would silently replace the earlier descriptor.
        name = f"fd{next(self._fd_names)}"
        await self.execute("getfd", {"fdname": name}, fds=(fd,))
        return name

    async def _send(self, line: bytes, fds: Sequence[int]) -> None:
        async with self._send_lock:
            # A line cut short would garble every later command, so no cancelling halfway.
            with trio.move_on_after(_SEND_TIMEOUT, shield=True) as scope:
                try:
                    if fds:
                        sent = await _send_with_fds(self._stream.socket, line, fds)
                        line = line[sent:]
                    if line:
                        await self._stream.send_all(line)
                except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                    raise VmmGone("the VMM closed its control socket") from None
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self._stream)
                raise ControlTimeout(f"QEMU took no command for {_SEND_TIMEOUT} s")


async def _send_with_fds(sock: trio.socket.SocketType, line: bytes, fds: Sequence[int]) -> int:
    # QEMU forgets descriptors that don't come with the bytes of the command taking them.
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return await sock.sendmsg([line], [rights])


__all__ = ["DEFAULT_TIMEOUT", "QmpClient", "QmpEvent", "QmpProtocolError"]
