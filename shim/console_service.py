"""The service of a console in a pod's guest: frames go on as they are, both ways.

Source: protos/katapy/shim.proto, protos/katapy/extension.proto.
"""

from __future__ import annotations

import trio

from shim.errors import FailedPrecondition
from shim.pod.sandbox import Sandbox
from shim.ttrpc.service import CallContext
from shim.ttrpc.stream import ClientStream, ServerStream

FEATURE = "console"


class ConsoleService:
    """Handlers of ``katapy.shim.v1.Console``.

    Args:
        sandbox: the pod.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def open(self, stream: ServerStream, _context: CallContext) -> None:
        """Console.Open: until the guest's side ends."""
        agent = self._sandbox.agent
        if FEATURE not in agent.features:
            raise FailedPrecondition(
                f"pod {self._sandbox.id} has no debug console: set debug_console_enabled in "
                "[agent.kata], or the pod's kernel_params to agent.debug_console, and start it anew"
            )
        failures: list[Exception] = []
        with agent.console() as guest:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_to_guest, stream, guest)
                try:
                    while (frame := await guest.receive()) is not None:
                        await stream.send_encoded(frame)
                except Exception as error:
                    failures.append(error)  # raised where no nursery makes a group of it
                nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]


async def _to_guest(stream: ServerStream, guest: ClientStream) -> None:
    try:
        while (frame := await stream.inbox.get()) is not None:
            await guest.send(frame)
        guest.close_send()
    except Exception:
        guest.cancel()  # either end is gone; the other direction tells why
