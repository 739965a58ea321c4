"""The stand-in for the ``cloud-hypervisor`` program."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.standins import settings
from tests.standins.clh.api import PAYLOAD_MAX, SERVER, Api
from tests.standins.clh.events import Monitor
from tests.standins.clh.vmm import Vmm
from tests.standins.server import HttpServer, Loop, listen
from tests.standins.stdin import forward

VERSION_VARIABLE = "KATAPY_STANDIN_CLOUD_HYPERVISOR_VERSION"
DEFAULT_VERSION = "53.0"
_LOCK_FILE = (53,)
_NO_SHUTDOWN = (52,)
_SECCOMP_ERRNO = (53,)


def main(argv: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    version = settings.chosen_version(VERSION_VARIABLE, DEFAULT_VERSION)
    numbers = tuple(int(part) for part in version.split("."))
    options = _parser(numbers).parse_args(argv)
    if options.version:
        print(f"cloud-hypervisor v{version}")
        return 0
    os.umask(0o077)
    if not options.api_socket:
        print("stand-in: --api-socket is needed; VMs from the command line are not played")
        return 1
    try:
        monitor = Monitor(_event_fd(options.event_monitor))
        listener, path, lock = _listener(options.api_socket, numbers)
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if options.log_file:
        Path(options.log_file).touch()
    loop = Loop()
    vmm = Vmm(loop, monitor, numbers, no_shutdown=getattr(options, "no_shutdown", False))
    _end_on_signals(loop, vmm)
    forward(loop, vmm.terminal)
    HttpServer(loop, listener, Api(vmm, version).handle, SERVER, PAYLOAD_MAX)
    try:
        return loop.run()
    finally:
        vmm.close()
        if path:
            with suppress(OSError):
                os.unlink(path)
        if lock >= 0:
            os.close(lock)


def _parser(version: tuple[int, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloud-hypervisor", allow_abbrev=False)
    seccomp = ["true", "false", "log"] + (["errno"] if version >= _SECCOMP_ERRNO else [])
    parser.add_argument("--api-socket")
    parser.add_argument("--event-monitor")
    parser.add_argument("--log-file")
    parser.add_argument("-v", action="count")
    parser.add_argument("--seccomp", choices=seccomp, default="true")
    parser.add_argument("--landlock", action="store_true")
    parser.add_argument("--landlock-rules", nargs="+")
    parser.add_argument("-V", "--version", action="store_true")
    if version >= _NO_SHUTDOWN:
        parser.add_argument("--no-shutdown", action="store_true")
        parser.add_argument("--log-format")
    return parser


def _key(text: str) -> tuple[str, str]:
    """Split ``path=P`` or ``fd=N``."""
    name, equals, value = text.partition("=")
    if not equals or name not in ("path", "fd"):
        raise ValueError(f"Error parsing option: path or fd required: {text}")
    return name, value


def _event_fd(text: str | None) -> int:
    if not text:
        return -1
    name, value = _key(text)
    if name == "fd":
        os.set_inheritable(int(value), False)
        return int(value)
    return os.open(value, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _listener(text: str, version: tuple[int, ...]) -> tuple[socket.socket, str, int]:
    """Return the listening socket, its path if it is ours, and the lock's descriptor or -1."""
    name, value = _key(text) if "=" in text else ("path", text)
    if name == "fd":
        listener = socket.socket(fileno=int(value))
        listener.set_inheritable(False)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(22, "the API socket's descriptor does not listen")
        return listener, "", -1
    lock = -1
    if version >= _LOCK_FILE:
        lock = os.open(f"{value}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with suppress(OSError):
        os.unlink(value)
    return listen(value), value, lock


def _end_on_signals(loop: Loop, vmm: Vmm) -> None:
    """End in order on SIGTERM and SIGINT."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def arrived() -> None:
        numbers = reader.recv(64)
        if {signal.SIGTERM, signal.SIGINT} & set(numbers):
            vmm.end()

    loop.watch(reader, arrived)
    loop.keep(writer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
