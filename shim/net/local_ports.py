"""The guest's ports at the loopback of the pod's network namespace, for port-forward.

A CRI server forwards a port by entering the pod's namespace and connecting to localhost
there. What listens in the guest is not there, so for each such port this listens in its
place and carries connections to the guest's own loopback by the agent: no rule of a
firewall is needed, and servers that listen on 127.0.0.1 alone are reached too.

Nobody else uses that loopback: the pod's processes are in the guest.

Source: containerd's CRI port-forward (dials tcp4, then tcp6 localhost); ip(7) IP_FREEBIND.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial

import trio

from shim.agent import Agent
from shim.log import Log
from shim.net.netlink import in_netns

PORTS_MAX = 128
"""Ports mirrored at a time: the guest decides how many there are, we have descriptors."""
_BACKLOG = 32
_STEP_TIMEOUT_S = 10.0
_IP_FREEBIND = 15  # the address is there only while lo is up


class LocalPorts:
    """Listens wherever the guest's loopback answers.

    Args:
        netns: descriptor of the pod's network namespace, open while :meth:`reflect` runs.
        log: the shim's log.
    """

    def __init__(self, netns: int, log: Log) -> None:
        self._netns = netns
        self._log = log
        self._serving: dict[int, trio.CancelScope] = {}

    async def reflect(self, agent: Agent) -> None:
        """Follow the guest until cancelled; nothing happens with an agent that can't dial."""
        if not {"listeners", "dial"} <= set(agent.features):
            return
        async with trio.open_nursery() as nursery:
            async for now in agent.listeners(local=True):
                await self._serve({port for _protocol, port in now}, agent, nursery)

    async def _serve(self, ports: set[int], agent: Agent, nursery: trio.Nursery) -> None:
        for port in self._serving.keys() - ports:
            self._serving.pop(port).cancel()
        wanted = sorted(ports - self._serving.keys())
        room = PORTS_MAX - len(self._serving)
        if len(wanted) > room:
            self._log.warning(f"of the pod's ports {len(wanted) - room} can't be forwarded")
        if not wanted[:room]:
            return
        for port, sock in (await self._listen(wanted[:room])).items():
            scope = self._serving[port] = trio.CancelScope()
            nursery.start_soon(self._accept, port, sock, agent, scope, nursery)

    async def _listen(self, ports: list[int]) -> dict[int, socket.socket]:
        def make() -> dict[int, socket.socket]:
            return {port: sock for port in ports if (sock := _listener(port, self._log.warning))}

        run = partial(in_netns, self._netns, make, _STEP_TIMEOUT_S)
        return await trio.to_thread.run_sync(run)

    async def _accept(
        self,
        port: int,
        sock: socket.socket,
        agent: Agent,
        scope: trio.CancelScope,
        nursery: trio.Nursery,
    ) -> None:
        """Serve one port until its scope is cancelled; what is connected stays so."""
        sock.setblocking(False)
        with trio.socket.from_stdlib_socket(sock) as listener, scope:
            while True:
                try:
                    accepted, _address = await listener.accept()
                except OSError as err:  # out of descriptors, or the peer is gone already
                    self._log.warning(f"port {port} of the pod: {os.strerror(err.errno or 0)}")
                    await trio.sleep(1)
                    continue
                nursery.start_soon(agent.dial, port, trio.SocketStream(accepted))


def _listener(port: int, warn: Callable[[str], None]) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(_BACKLOG)
    except OSError as err:
        sock.close()
        warn(f"port {port} of the pod can't be forwarded: {err.strerror}")
        return None
    return sock
