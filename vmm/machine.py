"""What the backends with an HTTP API have in common, beside the life of their process.

A backend adds how to launch, greet, command and explain its VMM.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from vmm import channel
from vmm.errors import ChannelClosed, ControlTimeout, VmmError
from vmm.events import VmmLog
from vmm.pipes import pump
from vmm.process import Process
from vmm.vm_process import LIVE, RUNNING, VmProcess

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence

    from vmm.http_client import HttpClient
    from vmm.hypervisor import Capabilities, Recorder
    from vmm.spec import AttachedDevice, VmSpec

logger = logging.getLogger(__name__)

_GREETING_INTERVALS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass
class Launched:
    """A VMM process that was just started; its guest does not run yet.

    Args:
        child: the process.
        api: its API's socket.
        vsock: the hybrid vsock's socket; there once the guest is booted.
        capabilities: what this VM can do.
        console: our end of the pipe that the guest's console goes to, or None.
        output_is_console: the guest's console is the process's own output.
        pipes: our ends of further pipes, and what takes their bytes.
        paths: sockets and pipes to remove when the VMM is gone.
    """

    child: subprocess.Popen[bytes]
    api: Path
    vsock: Path | None
    capabilities: Capabilities
    console: int | None
    output_is_console: bool
    pipes: Sequence[tuple[int, Callable[[bytes], object]]] = ()
    paths: list[Path] = field(default_factory=list)


class Machine(VmProcess):
    """One VM of a VMM with an HTTP API. See :class:`vmm.vm_process.VmProcess`."""

    def __init__(self, spec: VmSpec, record: Recorder | None) -> None:
        super().__init__(spec, record)
        self._launched: Launched
        self._api: HttpClient
        self._pipes_done: list[trio.Event] = []

    # -- what a backend adds ------------------------------------------------------------

    def _launch(self) -> Launched:
        """Check everything, then start the VMM. Blocking; runs in a thread."""
        raise NotImplementedError

    def _make_api(self, launched: Launched) -> HttpClient:
        raise NotImplementedError

    async def _greet(self) -> None:
        """Exchange a first request with the API; ChannelClosed means it is not up yet."""
        raise NotImplementedError

    def _clean_up(self) -> None:
        """Remove what only this backend makes, once the VMM is gone. Blocking."""

    # -- lifetime -------------------------------------------------------------------

    async def _start(self) -> Process:
        launched = self._launched = await trio.to_thread.run_sync(self._launch)
        self._capabilities = launched.capabilities
        self._api = self._make_api(launched)
        return Process(launched.child, self._take_output_line, name=self.program)

    async def _connect(self) -> None:
        launched = self._launched
        if launched.console is not None:
            self._start_pump(launched.console, self._console.feed)
        for fd, feed in launched.pipes:
            self._start_pump(fd, feed)
        await self._or_gone(self._greet_until_answered)

    def _start_pump(self, fd: int, feed: Callable[[bytes], object]) -> None:
        done = trio.Event()
        self._pipes_done.append(done)

        async def run() -> None:
            await pump(fd, feed, self._process.exited)
            done.set()

        self._background.start_soon(run)

    def _take_output_line(self, line: str) -> None:
        if self._launched.output_is_console:
            self._console.feed(f"{line}\n".encode())
        else:
            self._events.publish(VmmLog(line))

    async def _greet_until_answered(self) -> None:
        rounds = 0
        with trio.move_on_after(self.spec.spawn_timeout):
            while True:
                try:
                    return await self._greet()
                except ChannelClosed:
                    interval = _GREETING_INTERVALS[min(rounds, len(_GREETING_INTERVALS) - 1)]
                    rounds += 1
                    await trio.sleep(interval)
        raise ControlTimeout(
            f"{self.program} (pid {self.pid}) does not answer on {self._launched.api} "
            f"after {self.spec.spawn_timeout:g} s"
        )

    async def _hear_last_words(self) -> None:
        for done in self._pipes_done:
            await done.wait()

    async def _release(self) -> None:
        await self._api.aclose()
        for path in self._launched.paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        try:
            await trio.to_thread.run_sync(self._clean_up)
        except (OSError, VmmError) as error:
            logger.error("%s: not everything could be removed: %s", self.program, error)

    # -- guards -----------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Any:
        call = partial(self._api.request, method, target, body, fds=fds, timeout=timeout)
        return await self._or_gone(call)

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id."""
        raise NotImplementedError

    # -- the guest ----------------------------------------------------------------------

    async def dial_agent(self, timeout: float) -> trio.SocketStream:
        """See :meth:`vmm.hypervisor.Hypervisor.dial_agent`."""
        self._need(*RUNNING)
        uds = self._launched.vsock
        assert uds is not None  # every plan has the device
        return await self._dial(partial(channel.dial_hybrid, uds, self.spec.agent_port), timeout)

    @property
    def agent_url(self) -> str:
        """See :meth:`vmm.hypervisor.Hypervisor.agent_url`."""
        return f"hvsock://{self._launched.vsock}:{self.spec.agent_port}"

    def _threads(self, prefix: str) -> dict[int, int]:
        """Return the host threads of the virtual CPUs, found by the VMM's names for them."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):
                name = (task / "comm").read_text().strip()
                number = name.removeprefix(prefix).strip()
                if name.startswith(prefix) and number.isdigit():
                    found[int(number)] = int(task.name)
        return found


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors of a launch that failed."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


__all__ = ["LIVE", "RUNNING", "Launched", "Machine", "close_fds"]
