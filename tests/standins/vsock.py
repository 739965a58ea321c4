"""Hybrid vsock: Debian's vhost-device-vsock, held like a device inside the VMM."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress

from tests.standins.detached import open_detached_directory
from tests.standins.lifetime import end, spawn
from tests.standins.server import Loop, listen
from tests.standins.vhost_relay import Relay

PROGRAM = "vhost-device-vsock"
PROGRAM_VARIABLE = "KATAPY_STANDIN_VSOCK"
_READY_TIMEOUT = 10.0
_LISTENING = "00010000"
_STDERR = 2
_REQUEST_TIMEOUT = 2.0


class VsockBackend:
    """A vsock device's host side.

    Args:
        cid: the guest's context id.
        uds: the socket that hosts connect to; must not exist.
        loop: what answers there until the guest has its driver up. The daemon spins for ever
            when a connection comes before (rust-vmm/vhost-device, pull request 827).

    So the daemon listens out of sight, where nothing stays when this process is killed, and
    ``uds`` becomes a link to there. In a jail it has to be a file beside ``uds``, which goes
    with the jail.

    Raises:
        OSError: the socket can't be bound.
    """

    def __init__(self, cid: int, uds: str, loop: Loop) -> None:
        if os.path.lexists(uds):
            raise OSError(errno.EADDRINUSE, "Address in use")
        listen(uds).close()  # says the same about length and directory as the VMM would
        os.unlink(uds)
        program = os.environ.get(PROGRAM_VARIABLE) or shutil.which(PROGRAM)
        if program is None:
            raise OSError(errno.ENOENT, f"{PROGRAM}: install it or name it in {PROGRAM_VARIABLE}")
        self.cid = cid
        self.uds = uds
        self._loop = loop
        self._frozen = self._was_open = False
        self._directory = _detached_directory()
        name = secrets.token_hex(8)
        own = f"/proc/self/fd/{self._directory}/{name}" if self._directory >= 0 else uds
        self._target = f"/proc/{os.getpid()}/fd/{self._directory}/{name}"
        self._hidden = f"{uds}.daemon"
        self._front: socket.socket | None = None
        self._pending: list[socket.socket] = []
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._relay = Relay(daemon)
        self.vhost = self._relay.front
        # Gone again before this returns: a VMM that is killed leaves its vsock socket only.
        with tempfile.TemporaryDirectory(prefix="standin-", dir=_runtime_dir()) as directory:
            control = f"{directory}/vhost.sock"
            options = f"guest-cid={cid},socket={control},uds-path={own}"
            # A jail has no /dev/null.
            self._process = spawn(
                [program, "--vm", options],
                pass_fds=[self._directory] if self._directory >= 0 else [],
                stdin=_STDERR,
                stdout=_STDERR,
            )
            try:
                self._until_listening({control, own})
                daemon.connect(control)
                self._relay.start()
                self._hide_daemon()
            except BaseException:
                self.close()
                raise

    def _until_listening(self, waiting: set[str]) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT
        while waiting:
            if self._process.poll() is not None:
                raise OSError(errno.EIO, f"{PROGRAM} ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"{PROGRAM} does not listen on {waiting}")
            time.sleep(0.005)
            waiting -= _listening()

    def _hide_daemon(self) -> None:
        if self._directory < 0:
            os.rename(self.uds, self._hidden)
        elif os.path.lexists(self.uds):
            os.unlink(self.uds)
        self._front = listen(self.uds)
        self._loop.watch(self._front, self._accept)

    def _accept(self) -> None:
        """Let a connection wait for the guest, and give up as the VMMs do."""
        assert self._front is not None
        sock, _ = self._front.accept()
        self._pending.append(sock)
        if not self._frozen:
            self._loop.after(_REQUEST_TIMEOUT, lambda: self._give_up(sock))

    def _give_up(self, sock: socket.socket) -> None:
        if sock in self._pending:
            self._pending.remove(sock)
            sock.close()

    def connect_guest(self) -> None:
        """Let the daemon answer: the guest's driver is up."""
        if self._front is None:
            return
        if self._directory < 0:
            os.rename(self._hidden, self.uds)
        else:
            os.unlink(self.uds)
            os.symlink(self._target, self.uds)
        self._close_front()

    def _close_front(self) -> None:
        if self._front is not None:
            self._loop.forget(self._front)
            self._front.close()
            self._front = None
        for sock in self._pending:
            sock.close()
        self._pending = []

    def freeze(self) -> None:
        """Stand still, as every device of a paused VMM does."""
        self._frozen = True
        self._was_open = self._front is None
        if self._was_open:
            # The daemon does not stand a client either that came and went in the meantime.
            self._hide_daemon()
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False
        if self._was_open:
            self.connect_guest()

    def hang_new_connections(self) -> None:
        """Leave connections alone from now on: Firecracker's fault after pause and resume.

        Open connections go on. Source: Firecracker CHANGELOG, 1.17, Fixed.
        """
        if self._front is None:
            with suppress(OSError):
                os.unlink(self.uds)
            self._front = listen(self.uds)

    def close(self) -> None:
        """End it; the socket stays, as the VMM's would."""
        end(self._process)
        self._relay.close()
        self._close_front()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        with suppress(OSError):
            os.unlink(self._hidden)


def _detached_directory() -> int:
    try:
        return open_detached_directory()
    except OSError:
        return -1


def _runtime_dir() -> str:
    return "/run" if os.access("/run", os.W_OK) else tempfile.gettempdir()


def _listening() -> set[str]:
    found = set()
    with open("/proc/net/unix") as table:
        for line in table:
            fields = line.rstrip("\n").split(None, 7)
            if len(fields) == 8 and fields[3] == _LISTENING:
                found.add(fields[7])
    return found
