"""The host's network for a pod that asks for it: through sockets of the host's own.

A VM can't be in the host's network namespace. It gets one of its own instead, which
slirp4netns connects to the host's network: what the pod opens leaves by a socket of the
host, and each port that somebody in the guest listens on is listened on at the host.

Source: slirp4netns(1); its API is one JSON object a connection.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import trio

from shim.agent import Agent
from shim.cleanup import process_table
from shim.cleanup.ledger import Ledger
from shim.cleanup.rollback import Rollback
from shim.errors import ConfigError, Internal
from shim.log import Log

LINK = "tap0"
GUEST_ADDRESS = "10.0.2.100"  # slirp4netns's own choice for the network it makes
READY_TIMEOUT_S = 10.0
API_TIMEOUT_S = 5.0
END_TIMEOUT_S = 5.0
PORTS_MAX = 1024
"""Ports listened on at a time: the guest says how many there are, the host's are shared."""
_ANSWER_MAX = 4096

Listener = tuple[str, int]
"""Protocol, "tcp" or "udp", and port."""


class HostProxy:
    """slirp4netns for one pod.

    Args:
        program: its executable; None finds it on the PATH.
        runtime_dir: existing directory for its socket.
        ledger: takes the process and the socket.
        cleanup: the pod's rollback stack.
        log: the shim's log.
    """

    def __init__(
        self,
        program: Path | None,
        runtime_dir: Path,
        *,
        ledger: Ledger,
        cleanup: Rollback,
        log: Log,
    ) -> None:
        self._program = program
        self._api = runtime_dir / "slirp4netns.sock"
        self._ledger = ledger
        self._cleanup = cleanup
        self._log = log
        self._forwards: dict[Listener, int] = {}

    async def start(self, netns: int) -> None:
        """Connect a new network namespace; its link is there when this returns.

        Args:
            netns: the namespace, as an open descriptor.

        Raises:
            ConfigError: slirp4netns is not installed.
            Internal: it does not start; the text has its last words.
        """
        program = str(self._program or shutil.which("slirp4netns") or "")
        if not program:
            raise ConfigError(
                "[katapy] host_network = 'proxy' needs slirp4netns (Debian's package of this name)"
            )
        socket = self._ledger.add("socket", path=str(self._api))
        ready, told = os.pipe2(os.O_CLOEXEC)
        said = os.memfd_create("slirp4netns", os.MFD_CLOEXEC)
        try:
            child = await trio.to_thread.run_sync(self._spawn, program, netns, told, said)
            started = process_table.start_time(child.pid) or 0
            process = self._ledger.add(
                "process", pid=child.pid, start_time=started, role="slirp4netns"
            )

            async def end() -> None:
                child.kill()
                await trio.to_thread.run_sync(child.wait, END_TIMEOUT_S)
                self._api.unlink(missing_ok=True)
                self._ledger.remove(process)
                self._ledger.remove(socket)

            self._cleanup.push("slirp4netns", end, timeout=END_TIMEOUT_S + 1)
            os.close(told)
            told = -1
            with trio.move_on_after(READY_TIMEOUT_S):
                await trio.lowlevel.wait_readable(ready)
                if os.read(ready, 1) == b"1":
                    return
            text = os.pread(said, _ANSWER_MAX, 0).decode(errors="replace").strip()
            raise Internal(f"{program} did not connect the pod's network: {text}")
        finally:
            for fd in (ready, told, said):
                if fd >= 0:
                    os.close(fd)

    def _spawn(self, program: str, netns: int, ready: int, said: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                program,
                # In a mount namespace of its own without capabilities; ours is private,
                # so that what it unmounts there is unmounted nowhere else.
                *("--configure", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6"),
                *("--api-socket", str(self._api), "--ready-fd", str(ready)),
                *("--netns-type=path", f"/proc/{os.getpid()}/fd/{netns}", LINK),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=(ready,),
            start_new_session=True,
            cwd="/",
        )

    async def reflect(self, agent: Agent) -> None:
        """Listen at the host wherever the guest does, until cancelled."""
        if "listeners" not in agent.features:
            self._log.warning("this guest agent tells no ports: none is reachable at the host")
            return
        refused: set[Listener] = set()
        left_out = 0
        async for now in agent.listeners():
            for gone in set(self._forwards) - now:
                await self._ask("remove_hostfwd", {"id": self._forwards.pop(gone)})
            refused &= now
            wanted = sorted(now - set(self._forwards) - refused)
            room = PORTS_MAX - len(self._forwards)
            if len(wanted) - room > max(0, left_out):
                self._log.warning(
                    f"{len(wanted) - room} of the pod's ports are not at the host, which "
                    f"listens on {PORTS_MAX} for a pod"
                )
            left_out = len(wanted) - room
            for listener in wanted[:room]:
                try:
                    self._forwards[listener] = await self._add(listener)
                except OSError as err:
                    refused.add(listener)
                    protocol, port = listener
                    self._log.error(f"port {port}/{protocol} of the pod is not at the host: {err}")

    async def _add(self, listener: Listener) -> int:
        protocol, port = listener
        answer = await self._ask(
            "add_hostfwd",
            {
                "proto": protocol,
                "host_addr": "0.0.0.0",
                "host_port": port,
                "guest_addr": GUEST_ADDRESS,
                "guest_port": port,
            },
        )
        return int(answer["return"]["id"])

    async def _ask(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One call of slirp4netns's API.

        Raises:
            OSError: it refuses, or is gone.
        """
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        try:
            with trio.fail_after(API_TIMEOUT_S):
                async with await trio.open_unix_socket(str(self._api)) as stream:
                    await stream.send_all(request)
                    await stream.send_eof()
                    data = b""
                    while part := await stream.receive_some(_ANSWER_MAX):
                        data += part
            answer: dict[str, Any] = json.loads(data)
        except (trio.TooSlowError, trio.BrokenResourceError, ValueError) as err:
            raise OSError(f"slirp4netns does not answer {command}: {err!r}") from err
        if "error" in answer:
            raise OSError(str(answer["error"].get("desc", answer)))
        return answer
