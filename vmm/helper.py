"""Daemons that serve a VM: started, watched and ended with the block that uses them."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from vmm.process import Process, terminate
from vmm.sockets import listen
from vmm.spawn import spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from vmm.hypervisor import Recorder

_END_TIMEOUT = 10.0


@asynccontextmanager
async def run_helper(
    command: Callable[[int], Sequence[str]],
    *,
    listen_on: Path,
    owns: Sequence[Path] = (),
    grace: float = 0.0,
    record: Recorder | None = None,
    on_line: Callable[[str], None] | None = None,
) -> AsyncIterator[Process]:
    """Run a daemon that serves a unix socket which is bound before it starts.

    A client may connect at once; it is served as soon as the daemon is up. The process's
    ``exited`` event tells of its death, its ``tail`` of its last words.

    Args:
        command: makes the command line from the number of the listening descriptor.
        listen_on: path of the socket.
        owns: further files it makes, removed afterwards.
        grace: seconds between SIGTERM and SIGKILL at the end; 0 kills at once.
        record: told of sockets, files and the process.
        on_line: called with each line the daemon writes.

    Raises:
        InvalidConfig: the program can't be started, or the socket not be bound.
    """
    if record is not None:
        for path in (listen_on, *owns):
            record("socket", str(path))

    def start() -> Process:
        with listen(listen_on) as listener:
            argv = command(listener.fileno())
            return Process(spawn(argv, pass_fds=(listener.fileno(),)), on_line)

    failure: BaseException | None = None
    try:
        process = await trio.to_thread.run_sync(start)
        if record is not None:
            record("process", process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.watch)
            try:
                yield process
            except BaseException as error:
                failure = error  # raised again outside the nursery, which would wrap it
            with trio.move_on_after(grace + _END_TIMEOUT, shield=True):
                await terminate(process, grace)
            nursery.cancel_scope.cancel()
        process.close()
    finally:
        for path in (listen_on, *owns):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    if failure is not None:
        raise failure
