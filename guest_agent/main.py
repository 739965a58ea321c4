"""Entry of the guest agent: PID 1 of a guest, or a process on a host for tests.

In a guest it takes its settings from the kernel command line. On a host it is run,
as root in a mount namespace and a pid namespace of its own, by

    python -m guest_agent --listen unix:///path/of.sock --root DIR

where DIR stands for the guest's /run/kata-containers.
"""

from __future__ import annotations

import os
from time import clock_gettime_ns

from protos.tables import kata_agent, kata_health, katapy_extension

from . import block, boot, libc
from .channel import find_port, listen_unix, listen_vsock, serve_listener, serve_port
from .children import Children
from .container import BASE, Runtime
from .crun import Crun
from .guest import Guest
from .log import log, set_level
from .loop import Event, Loop, Nursery
from .rpc import Deferred, Server
from .sandbox import Sandbox
from .service import Containers
from .stdio import PIPE_SIZE
from .storage import Storages, mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

FAREWELL_SECONDS = 0.1  # the answer to DestroySandbox leaves before the machine does
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
        loop = Loop()
        loop.run(_guest(loop, settings, stamps))
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


async def _guest(loop: Loop, settings: Mapping[str, str], stamps: dict[str, int]) -> None:
    channel = settings.get("katapy.channel", "serial")
    async with Nursery(loop) as nursery:
        server, finished = _build(loop, nursery, settings, stamps, owns_machine=True)
        if channel == "vsock":
            nursery.spawn(serve_listener(server, nursery, listen_vsock()))
        else:
            port = os.open(await find_port(loop), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            nursery.spawn(serve_port(server, port))
        stamps["serving"] = _now()
        log("info", "agent serves", channel=channel, uptime_us=stamps["serving"])
        await finished.wait()
        await loop.sleep(FAREWELL_SECONDS)
        nursery.cancel()


def _build(
    loop: Loop,
    nursery: Nursery,
    settings: Mapping[str, str],
    stamps: dict[str, int],
    *,
    owns_machine: bool,
) -> tuple[Server, Event]:
    """Make the agent's objects; the event is set when it is to end."""
    options = ["--cgroup-manager=cgroupfs"]
    if not owns_machine:
        options = ["--cgroup-manager=disabled", f"--root={BASE}/crun"]
    os.makedirs(f"{BASE}/sandbox", mode=0o700, exist_ok=True)
    children = Children(loop)
    nursery.spawn(children.reap_forever())
    crun = Crun(children, f"{BASE}/sandbox", options)
    pipe_size = int(settings.get("agent.container_pipe_size", PIPE_SIZE)) or PIPE_SIZE
    runtime = Runtime(loop, nursery, children, crun, pipe_size)
    storages = Storages(loop)
    containers = Containers(runtime, storages)
    finished = Event(loop)
    sandbox = Sandbox(loop, children, containers, storages, finished, owns_machine)
    guest = Guest(loop, stamps, is_init=owns_machine)
    server = Server(loop, nursery)
    server.add(
        {"grpc.AgentService": kata_agent.SERVICES["grpc.AgentService"]},
        {
            **containers.handlers,
            **sandbox.handlers,
            **guest.handlers,
            **dict.fromkeys(_NETWORK, Deferred(lambda: _network(loop))),
            **dict.fromkeys(_IPTABLES, Deferred(lambda: _iptables(children))),
        },
        Containers.WAITS,
    )
    server.add({"grpc.Health": kata_health.SERVICES["grpc.Health"]}, guest.health)
    server.add(
        katapy_extension.SERVICES,
        {
            **guest.extension,
            **dict.fromkeys(_PORTS, Deferred(lambda: _ports(loop))),
            **dict.fromkeys(_SOCKETS, Deferred(lambda: _sockets(loop))),
            "Stdio": containers.stdio,
            "PushFiles": sandbox.push_files,
            "PullFile": sandbox.pull_file,
        },
        frozenset({"WaitListeners"}),
    )
    return server, finished


_NETWORK = ("UpdateInterface", "UpdateRoutes", "ListInterfaces", "ListRoutes", "AddARPNeighbors")
_IPTABLES = ("GetIPTables", "SetIPTables")
_PORTS = ("WaitListeners", "Dial")
_SOCKETS = ("ListenSocket", "Connection")


def _network(loop: Loop) -> Mapping[str, Any]:
    from .network import Network

    return Network(loop).handlers


def _iptables(children: Children) -> Mapping[str, Any]:
    from .iptables import IpTables

    return IpTables(children).handlers


def _ports(loop: Loop) -> Mapping[str, Any]:
    from .dial import Dialer
    from .listeners import Listeners

    return {**Listeners(loop).extension, **Dialer(loop).extension}


def _sockets(loop: Loop) -> Mapping[str, Any]:
    from .sockets import Sockets

    return Sockets(loop).extension


def _on_host(argv: Sequence[str], stamps: dict[str, int]) -> int:
    """Serve on a unix socket, in a mount namespace where DIR can stand for the guest's paths."""
    arguments = dict(zip(argv[::2], argv[1::2], strict=False))
    listen, root = arguments.get("--listen", ""), arguments.get("--root", "")
    if set(arguments) != {"--listen", "--root"} or not listen.startswith("unix://"):
        os.write(2, b"usage: python -m guest_agent --listen unix:///PATH --root DIR\n")
        return 2
    path, root = os.path.abspath(listen.removeprefix("unix://")), os.path.abspath(root)
    os.makedirs(root, exist_ok=True)
    os.makedirs(BASE, exist_ok=True)
    mount(root, BASE, "bind", [])
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", [])  # crun refuses a host with v1 and v2
    if os.getpid() == 1:
        mount("proc", "/proc", "proc", [])
    else:
        libc.become_subreaper()
    loop = Loop()

    async def serve() -> None:
        async with Nursery(loop) as nursery:
            server, finished = _build(loop, nursery, {}, stamps, owns_machine=False)
            listener = listen_unix(path)
            nursery.spawn(serve_listener(server, nursery, listener))
            stamps["serving"] = _now()
            os.write(1, b"ready\n")  # for whoever started it
            await finished.wait()
            await loop.sleep(FAREWELL_SECONDS)
            nursery.cancel()
        listener.close()

    loop.run(serve())
    os.unlink(path)
    return 0
