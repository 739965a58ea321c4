"""The benchmark's own containerd: everything in one directory, gone at the end.

containerd, ctr, runc and its shim are those of the PATH; the shim of katapy is the code
that runs the benchmark, started as an installed one is. The host's own containerd, its
images and its configuration are never touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from shim.bench.deadline import Deadline, run
from shim.bench.figures import KATAPY, RUNC
from shim.bench.image import NAME, write_image
from shim.config.load import FILE_VARIABLE
from shim.errors import FailedPrecondition, KatapyError
from shim.launcher import render_launcher

RUNTIMES = {KATAPY: "io.containerd.katapy.v2", RUNC: "io.containerd.runc.v2"}
SHIMS = {KATAPY: "containerd-shim-katapy-v2", RUNC: "containerd-shim-runc-v2"}
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 20.0
_TASKS = "io.containerd.runtime.v2.task"
_CGROUPS = Path("/sys/fs/cgroup")


class World:
    """A running containerd with the image in it, and what names are used in it.

    Args:
        folder: holds everything; a short path, for its sockets.
        config_file: katapy's configuration, None for the one that applies on this host.
        deadline: of the whole benchmark.
    """

    def __init__(self, folder: Path, config_file: Path | None, deadline: Deadline) -> None:
        self.folder = folder
        self.deadline = deadline
        self.namespace = f"kb{secrets.token_hex(3)}"
        self.address = folder / "grpc.sock"
        self.ttrpc_address = folder / "ttrpc.sock"
        self.log = folder / "containerd.log"
        self.state_dir = folder / "s"
        self.containerd = _program("containerd")
        self._ctr = _program("ctr")
        self.version = run([self.containerd, "--version"], timeout=10).split()[2].lstrip("v")
        self.env = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "KATAPY_STATE_DIR": str(self.state_dir),
        }
        if config_file is not None:
            self.env[FILE_VARIABLE] = str(config_file.absolute())
        self._numbers = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runtimes(self) -> tuple[str, ...]:
        """katapy, and runc where it is installed."""
        has_runc = shutil.which("runc") and shutil.which(SHIMS[RUNC])
        return (KATAPY, RUNC) if has_runc else (KATAPY,)

    def new_id(self, runtime: str) -> str:
        """A container id not used before."""
        self._numbers += 1
        return f"{self.namespace}-{runtime[0]}{self._numbers}"

    def bundle(self, container: str) -> Path:
        """Where containerd keeps a task's bundle."""
        return self.folder / "state" / _TASKS / self.namespace / container

    def ctr_command(self, *words: str | Path) -> list[str]:
        """The argument vector of a ctr call in our namespace."""
        prefix = (self._ctr, "--address", self.address, "--namespace", self.namespace)
        return [str(word) for word in (*prefix, *words)]

    def ctr(self, *words: str | Path, timeout: float) -> str:
        """Run ctr to its end and return what it printed.

        Raises:
            DeadlineExceeded, Internal: as :func:`shim.bench.deadline.run`.
        """
        return run(self.ctr_command(*words), timeout=self.deadline.limit(timeout), env=self.env)

    def run_command(
        self, runtime: str, container: str, *command: str, options: tuple[str, ...] = ()
    ) -> list[str]:
        """The argument vector of ``ctr run`` of a command in the image."""
        return self.ctr_command(
            "run", *options, "--runtime", RUNTIMES[runtime], NAME, container, *command
        )

    def remove(self, container: str) -> None:
        """Take a container away with its task, whatever state it is in."""
        for words in (("tasks", "delete", "--force"), ("containers", "delete")):
            with contextlib.suppress(KatapyError):
                run(self.ctr_command(*words, container), timeout=30, env=self.env)

    def start(self) -> None:
        """Write the launcher and the configuration, start the daemon, import the image.

        Raises:
            KatapyError: something of it failed; the text has the end of the daemon's log.
        """
        self._write_launcher()
        self.state_dir.mkdir()
        (self.folder / "config.toml").write_text(self._config())
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [self.containerd, "--config", self.folder / "config.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,  # a terminal's Ctrl-C is for us, who stop it in order
            )
        end = time.monotonic() + self.deadline.limit(_START_TIMEOUT)
        while True:
            try:
                self.ctr("version", timeout=5)
            except KatapyError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    tail = self.log.read_text(errors="replace")[-2000:]
                    raise FailedPrecondition(f"containerd does not run: {error}\n{tail}") from error
                time.sleep(0.05)
            else:
                break
        write_image(self.folder / "image.tar")
        self.ctr("images", "import", self.folder / "image.tar", timeout=60)

    def stop(self) -> None:
        """Remove what is left in the namespace and end the daemon."""
        if self._process is None:
            return
        with contextlib.suppress(KatapyError):
            left = run(self.ctr_command("containers", "list", "-q"), timeout=30, env=self.env)
            for container in left.split():
                self.remove(container)
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for directory in _CGROUPS.glob(f"**/{self.namespace}"):
            with contextlib.suppress(OSError):
                directory.rmdir()
        with contextlib.suppress(OSError):
            Path("/run/containerd/runc", self.namespace).rmdir()

    def _write_launcher(self) -> None:
        binaries = self.folder / "bin"
        binaries.mkdir()
        source = str(Path(__file__).resolve().parents[2])
        # The system's interpreter rather than a virtual environment's, as installed.
        python = os.path.realpath(sys.executable)
        target = binaries / SHIMS[KATAPY]
        bytecode = str(self.folder / "bytecode")
        target.write_text(render_launcher(python, source, bytecode, _site_packages()))
        target.chmod(0o755)

    def _config(self) -> str:
        """A daemon without CRI, which wants a network setup, and with nothing outside."""
        file_format = 2 if self.version.startswith("1.") else 3
        off = ("grpc.v1.cri", "cri.v1.images", "cri.v1.runtime", "nri.v1.nri")
        names = ", ".join(f'"io.containerd.{name}"' for name in off)
        return f"""\
version = {file_format}
root = "{self.folder / "root"}"
state = "{self.folder / "state"}"
disabled_plugins = [{names}]
[grpc]
  address = "{self.address}"
[ttrpc]
  address = "{self.ttrpc_address}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder / "opt"}"
"""


@contextlib.contextmanager
def running_world(config_file: Path | None, deadline: Deadline) -> Iterator[World]:
    """Run a :class:`World` for the length of the block and leave nothing of it.

    Raises:
        FailedPrecondition: containerd or busybox is not there, or does not run.
    """
    if os.geteuid() != 0:
        raise FailedPrecondition("the benchmark needs root: it runs containers")
    folder = Path(tempfile.mkdtemp(prefix="katapy-"))
    try:
        world = World(folder, config_file, deadline)
        try:
            world.start()
            yield world
        finally:
            world.stop()
            _sweep(world.state_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(state_dir: Path) -> None:
    """Undo what shims that did not end in order have in their ledgers."""
    from shim.cleanup import ledger, sweeper

    for path in ledger.find_all(str(state_dir)):
        with contextlib.suppress(KatapyError, OSError), ledger.Ledger.open(path, 5.0) as left:
            sweeper.sweep(left, lambda text: print(f"katapy bench: {text}", file=sys.stderr))


def _site_packages() -> list[str]:
    folders = []
    for name in ("trio", "google.protobuf"):
        found = find_spec(name)
        if found is None or found.origin is None:
            raise FailedPrecondition(f"the package {name} is not there")
        folders.append(str(Path(found.origin).parents[name.count(".") + 1]))
    return list(dict.fromkeys(folders))


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise FailedPrecondition(f"no {name} on the PATH: install containerd, or extend the PATH")
    return Path(found)
