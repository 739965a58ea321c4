"""Entry of the guest agent: PID 1 of a guest, or a process on a host for tests.

In a guest it takes its settings from the kernel command line. On a host it is run,
as root in a mount namespace and a pid namespace of its own, by

    python -m guest_agent --listen unix:///path/of.sock --root DIR

where DIR stands for the guest's /run/kata-containers.
"""

from __future__ import annotations

import os
from time import clock_gettime_ns

from . import block, boot
from .channel import find_port, listen_vsock, serve_listener, serve_port
from .log import log, set_level
from .loop import Loop, Nursery

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MONOTONIC = 1


def main(argv: Sequence[str] = ()) -> int:
    """Run the agent; as PID 1 of a guest this ends by switching the machine off."""
    stamps = {"start": _now()}
    if argv:
        return _on_host(argv, stamps)
    settings: Mapping[str, str] = {}
    try:
        boot.mount_all()
        stamps["mounts"] = _now()
        settings = boot.kernel_arguments()
        boot.prepare()
        _apply(settings)
        stamps["prepared"] = _now()
        Loop().run(_guest(settings, stamps))
    except BaseException as error:
        log("critical", "agent failed", error=repr(error), trace=_trace(error))
    boot.end()
    return 1


def _now() -> int:
    return clock_gettime_ns(_MONOTONIC) // 1000


def _trace(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _apply(settings: Mapping[str, str]) -> None:
    set_level(settings.get("agent.log", "info"))
    block.timeout_seconds = float(settings.get("agent.hotplug_timeout", block.timeout_seconds))


async def _guest(settings: Mapping[str, str], stamps: dict[str, int]) -> None:
    loop = boot.current_loop()
    channel = settings.get("katapy.channel", "serial")
    async with Nursery(loop) as nursery:
        server, finished = _build(loop, nursery, settings, stamps, ["--cgroup-manager=cgroupfs"])
        if channel == "vsock":
            nursery.spawn(serve_listener(server, nursery, listen_vsock()))
        else:
            port = os.open(await find_port(loop), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            nursery.spawn(serve_port(server, port))
        stamps["serving"] = _now()
        log("info", "agent serves", channel=channel, uptime_us=stamps["serving"])
        await finished.wait()
        nursery.cancel()
