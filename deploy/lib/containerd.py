"""A containerd of our own: unpacked beside the system, with its own root, state and sockets.

The host's containerd, its images and its configuration are never touched. What two
daemons on one host share in spite of that are the directories /run/containerd/s (shim
sockets) and /run/containerd/fifo; names in them are hashed from our socket's path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deploy.lib.apt import Unpacked, fetch_debs
from deploy.lib.command import DeployError, run

RELEASES = {"1.6": "bookworm", "1.7": "trixie", "2.1": "sid"}
"""containerd's series, and the Debian release that carries it."""

START_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0
_PROGRAMS = [
    "/usr/bin/containerd",
    "/usr/bin/ctr",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/sbin/runc",
]


def fetch_containerd(release: str) -> Unpacked:
    """containerd, ctr, runc and runc's shim of a Debian release, beside the system."""
    return fetch_debs(release, ["containerd", "runc"], _PROGRAMS)


def config_text(folder: Path, *, version: int, plugins: str = "") -> str:
    """A daemon configuration with everything below ``folder``.

    Params: ``version`` is the file format's version, 2 (containerd 1.x) or 3 (2.x);
    ``plugins`` is TOML put at the end. CRI is off, because it wants a
    network setup, and so is NRI, whose socket has one place for the whole host.
    """
    cri = ["grpc.v1.cri"] if version == 2 else ["grpc.v1.cri", "cri.v1.images", "cri.v1.runtime"]
    disabled = ", ".join(f'"io.containerd.{name}"' for name in [*cri, "nri.v1.nri"])
    return f"""\
version = {version}
root = "{folder / "root"}"
state = "{folder / "state"}"
disabled_plugins = [{disabled}]

[grpc]
  address = "{folder / "grpc.sock"}"

[ttrpc]
  address = "{folder / "ttrpc.sock"}"

[debug]
  level = "debug"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder / "opt"}"

{plugins}"""


class Daemon:
    """One containerd in the foreground, our child; what it starts outlives its restarts.

    Params: ``folder`` holds its files and must have a short path, for its sockets;
    ``path`` are directories put before the unpacked programs in its PATH; ``env`` is
    added to its environment; ``config`` is the text of its configuration file; ``prefix``
    is a command that executes the one behind it, such as nsenter(1).
    """

    def __init__(
        self,
        packages: Unpacked,
        folder: Path,
        *,
        config: str,
        path: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self._prefix = prefix
        self.packages = packages
        self.folder = folder
        self.address = folder / "grpc.sock"
        self.log = folder / "containerd.log"
        places = [*path, packages.program("/usr/bin"), packages.program("/usr/sbin")]
        self.env = {
            **os.environ,
            **(env or {}),
            "PATH": ":".join([*map(str, places), os.environ["PATH"]]),
        }
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config)

    @property
    def pid(self) -> int:
        """The daemon's process id. Raises: DeployError when it isn't running."""
        if self._process is None:
            raise DeployError("containerd is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the daemon and wait until its API answers.

        Raises: DeployError when it ends or doesn't answer in time, with the log's end.
        """
        program = self.packages.program("/usr/bin/containerd")
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, program, "--config", self.folder / "config.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                # A terminal's Ctrl-C is ours to act on: the daemon is stopped in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.ctr("version", timeout=5)
            except DeployError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise DeployError(f"containerd: {error}\n{self.log_tail()}") from error
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End the daemon: by SIGTERM, and by SIGKILL if it takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ctr_command(self, *words: str | Path, namespace: str = "default") -> list[str]:
        """The argument vector of this daemon's own ctr."""
        program = self.packages.program("/usr/bin/ctr")
        prefix = [program, "--address", self.address, "--namespace", namespace]
        return [str(word) for word in (*prefix, *words)]

    def ctr(self, *words: str | Path, namespace: str = "default", timeout: float) -> str:
        """Run ctr to its end; returns its standard output. Raises: DeployError."""
        return run(self.ctr_command(*words, namespace=namespace), timeout=timeout, env=self.env)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the daemon's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"{self.log}: {error}"


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Run ``daemon`` for the length of the block."""
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()
