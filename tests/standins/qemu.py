"""The QEMU behind a stand-in: started paused, driven over QMP, watched by the loop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.standins.lifetime import end, spawn
from tests.standins.server import Loop
from tests.standins.vmstate import NotFound, make_vsock_savable

BINARY = "qemu-system-x86_64"
BINARY_VARIABLE = "KATAPY_STANDIN_QEMU"
_REPLY_TIMEOUT = 60.0
_MIGRATION_TIMEOUT = 120.0
_MIGRATES_TO_FILES = (8, 2)
_CONSOLE_READ = 65536
_EVENT_QUEUE = 2


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


class Qemu:
    """A QEMU process.

    Args:
        loop: what watches it.
        arguments: its options, without those for control and console.
        fds: descriptors it inherits.
        on_console: called with what the guest writes to its first serial port.
        on_event: called with an event's name and data.
        on_exit: called with the exit status (negative: signal).
    """

    def __init__(
        self,
        loop: Loop,
        arguments: Sequence[str],
        *,
        fds: Iterable[int] = (),
        on_console: Callable[[bytes], None],
        on_event: Callable[[str, dict[str, Any]], None],
        on_exit: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_console = on_console
        self._on_event = on_event
        self._on_exit = on_exit
        self._events: deque[dict[str, Any]] = deque()
        self._buffer = b""
        self._names = 0
        self._frozen = False
        self._events_loaded: tuple[int, int] | None = None
        ours, theirs = socket.socketpair()
        self._qmp = ours
        argv = [
            os.environ.get(BINARY_VARIABLE) or shutil.which(BINARY) or BINARY,
            *("-S", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-chardev", "stdio,id=console,signal=off"),
            *arguments,
        ]
        self._process = spawn(
            argv,
            pass_fds=[theirs.fileno(), *fds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        theirs.close()
        assert self._process.stdout is not None
        self._console = self._process.stdout.fileno()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.watch(self._qmp, self._qmp_readable)
        loop.watch(self._console, self._console_readable)
        loop.watch(self._pidfd, self._exited)
        try:
            greeting = self._read_message()["QMP"]["version"]["qemu"]
            self.version = (greeting["major"], greeting["minor"])
            self.execute("qmp_capabilities")
        except QmpError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run a command and return its answer.

        Argument names may have ``_`` for ``-``.

        Raises:
            QmpError: refused, or QEMU ended.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.run(command, named)

    def run(self, command: str, arguments: dict[str, Any], fd: int | None = None) -> Any:
        """Run a command, with a descriptor if need be.

        Raises:
            QmpError: refused, or QEMU ended.
        """
        if not self._frozen:
            return self._run(command, arguments, fd)
        self._process.send_signal(signal.SIGCONT)
        try:
            return self._run(command, arguments, fd)
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _run(self, command: str, arguments: dict[str, Any], fd: int | None) -> Any:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            if fd is None:
                self._qmp.sendall(line)
            else:
                socket.send_fds(self._qmp, [line], [fd])
        except OSError as error:
            raise QmpError(f"{command}: QEMU is gone") from error
        return self._answer(command)

    def _answer(self, command: str) -> Any:
        while True:
            message = self._read_message()
            if "event" in message:
                self._events.append(message)
                self._loop.after(0, self._deliver)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            else:
                return message.get("return")

    def give_fd(self, fd: int) -> str:
        """Hand a descriptor over; returns the name that commands know it by."""
        self._names += 1
        name = f"fd{self._names}"
        self.run("getfd", {"fdname": name}, fd)
        return name

    def save(self, path: str | Path) -> None:
        """Write the stopped VM's memory and devices to a file.

        Raises:
            QmpError: it can't.
            OSError: the file can't be made.
        """
        self._let_vsock_migrate()
        self._migrate("migrate", path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote; QEMU was started for it.

        Raises:
            QmpError: it can't.
            OSError: the file can't be opened.
        """
        self._let_vsock_migrate()
        self._migrate("migrate-incoming", path, os.O_RDONLY)
        if (device := self._vsock_path()) is not None:
            self._events_loaded = self._vsock_events(device)

    def _let_vsock_migrate(self) -> None:
        try:
            make_vsock_savable(self.pid)
        except NotFound as error:
            raise QmpError(str(error)) from error

    def _migrate(self, command: str, path: str | Path, flags: int) -> None:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if self.version >= _MIGRATES_TO_FILES:
                self.execute(command, uri=f"file:{path}")
            else:
                self.execute(command, uri=f"fd:{self.give_fd(fd)}")
            deadline = time.monotonic() + _MIGRATION_TIMEOUT
            while (status := self.execute("query-migrate")).get("status") != "completed":
                if status.get("status") in ("failed", "cancelled"):
                    raise QmpError(f"migration: {status.get('error-desc', 'failed')}")
                if time.monotonic() > deadline:
                    raise QmpError("migration does not end")
                time.sleep(0.02)
        finally:
            os.close(fd)

    def vsock_started(self) -> bool:
        """Whether the guest's driver has the vsock device's queues up.

        A loaded guest's has once it knows that its connections are gone: it would take a new
        one for one of those.
        """
        path = self._vsock_path()
        if path is None:
            return False
        status = self.execute("x-query-virtio-status", path=path)
        if not status["vhost-started"] or self._events_loaded is None:
            return bool(status["vhost-started"])
        offered, used = self._vsock_events(path)
        offered_then, used_then = self._events_loaded
        # The guest offers a buffer again when it is done with the event in it.
        return used != used_then and offered - offered_then == used - used_then

    def _vsock_path(self) -> str | None:
        found = (device for device in self.execute("x-query-virtio") if "vsock" in device["name"])
        return next((device["path"] for device in found), None)

    def _vsock_events(self, path: str) -> tuple[int, int]:
        """Return how many buffers for events the guest has offered, and got back."""
        rings = self.execute("x-query-virtio-queue-element", path=path, queue=_EVENT_QUEUE)
        return rings["avail"]["idx"], rings["used"]["idx"]

    def wake_stopped(self) -> None:
        """Thaw a frozen QEMU with its guest stopped: that is the first thing it is told.

        Raises:
            QmpError: it ended.
        """
        if not self._frozen:
            return
        self._frozen = False
        line = b'{"execute": "stop"}\n'
        self._qmp.sendall(line)
        self._process.send_signal(signal.SIGCONT)
        self._answer("stop")

    def freeze(self) -> None:
        """Stop the whole process; commands wake it for as long as they take."""
        self._frozen = True
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self._frozen = False
        self._process.send_signal(signal.SIGCONT)

    def wait_event(self, name: str, key: str, value: str) -> None:
        """Wait until an event has come whose data has ``key`` with ``value``.

        Raises:
            QmpError: it does not come.
        """
        while True:
            for message in self._events:
                if message["event"] == name and message.get("data", {}).get(key) == value:
                    return
            message = self._read_message()
            if "event" in message:
                self._events.append(message)
                self._loop.after(0, self._deliver)

    def type(self, data: bytes) -> None:
        """Put bytes into the guest's serial port."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def close(self) -> None:
        """Kill it."""
        end(self._process)
        self._drain_console()
        for fd in (self._qmp, self._console, self._pidfd):
            self._loop.forget(fd)
        self._qmp.close()
        os.close(self._pidfd)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _read_message(self) -> dict[str, Any]:
        deadline = time.monotonic() + _REPLY_TIMEOUT
        while b"\n" not in self._buffer:
            self._qmp.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._qmp.recv(65536)
            except OSError as error:
                raise QmpError(f"QEMU does not answer: {error}") from error
            if not data:
                raise QmpError("QEMU ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _qmp_readable(self) -> None:
        try:
            data = self._qmp.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.forget(self._qmp)  # its end shows on the pidfd
            return
        self._buffer += data
        while b"\n" in self._buffer:
            message = self._read_message()
            if "event" in message:
                self._events.append(message)
        self._deliver()

    def _deliver(self) -> None:
        while self._events:
            event = self._events.popleft()
            self._on_event(event["event"], event.get("data", {}))

    def _console_readable(self) -> None:
        data = os.read(self._console, _CONSOLE_READ)
        if data:
            self._on_console(data)
        else:
            self._loop.forget(self._console)

    def _drain_console(self) -> None:
        os.set_blocking(self._console, False)
        with suppress(OSError):
            while data := os.read(self._console, _CONSOLE_READ):
                self._on_console(data)

    def _exited(self) -> None:
        status = self._process.wait()
        with suppress(QmpError, OSError, ValueError):
            self._qmp_readable()
        self.close()
        self._on_exit(status)
