"""Daemons that serve a VM: started, watched and ended with the block that uses them."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from vmm.background import Background
from vmm.errors import ControlTimeout, VmmError
from vmm.events import telling_lines
from vmm.process import Process, terminate

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from vmm.hypervisor import Recorder

_END_TIMEOUT = 10.0
_LOOK_INTERVAL = 0.005
_LISTENING = "00010000"  # __SO_ACCEPTCON in the flags of /proc/net/unix


@asynccontextmanager
async def run_helper(
    name: str,
    start: Callable[[], subprocess.Popen[bytes]],
    *,
    sockets: Sequence[Path],
    record: Recorder | None = None,
    on_line: Callable[[str], None] | None = None,
) -> AsyncIterator[Process]:
    """Run a daemon for as long as the block runs.

    The process's ``exited`` event tells of its death, its ``tail`` of its last words.

    Args:
        name: what to call it.
        start: starts it; runs in a thread.
        sockets: what it listens on; removed afterwards.
        record: told of the sockets and the process.
        on_line: called with each line the daemon writes.
    """
    if record is not None:
        for path in sockets:
            record("socket", str(path))
    failure: BaseException | None = None
    try:
        process = Process(await trio.to_thread.run_sync(start), on_line, name=name)
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            background.start_soon(process.watch)
            try:
                if record is not None:
                    record("process", process.pid)  # may fail, and the process is there
                yield process
            except BaseException as error:
                failure = error  # raised again outside the nursery, which would wrap it
            with trio.move_on_after(_END_TIMEOUT, shield=True):
                await terminate(process, 0)
            background.stop()
        process.close()
    finally:
        for path in sockets:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    if failure is not None:
        raise failure


async def until_listening(process: Process, path: Path, timeout: float) -> None:
    """Wait until a daemon listens on a socket that it binds itself.

    Connecting to find out would count as a client, so the kernel's table is read.

    Args:
        process: the daemon, watched.
        path: the socket.
        timeout: seconds to wait.

    Raises:
        VmmError: the daemon ended.
        ControlTimeout: it does not listen in time.
    """
    with trio.move_on_after(timeout):
        while not _is_listening(path):
            if process.exited.is_set():
                said = " | ".join(telling_lines(process.tail.snapshot()))
                raise VmmError(f"{process.name} ended at once: {said}")
            with trio.move_on_after(_LOOK_INTERVAL):
                await process.exited.wait()
        return
    raise ControlTimeout(f"{process.name} does not listen on {path} after {timeout:g} s")


def _is_listening(path: Path) -> bool:
    with open("/proc/net/unix") as table:
        for line in table:
            fields = line.rstrip("\n").split(None, 7)
            if len(fields) == 8 and fields[3] == _LISTENING and fields[7] == str(path):
                return True
    return False
