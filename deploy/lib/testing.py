"""`deploy/test`: set everything up, then run every check and test of the project."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from deploy.lib import apt, tools
from deploy.lib.apt import Unpacked
from deploy.lib.command import DeployError, run
from deploy.lib.containerd import RELEASES, fetch_containerd
from deploy.lib.guest import prepare_guest
from deploy.lib.progress import Progress
from deploy.lib.quickstart import host_packages, require_root
from deploy.lib.runtime import prepare_runtime
from deploy.lib.venv import dependencies, prepare_venv, site_packages
from deploy.lib.work import REPOSITORY, work_dir

TESTS_TIMEOUT = 4500.0
CHECK_TIMEOUT = 600.0
INTERRUPT_TIMEOUT = 120.0
_TEST_PACKAGES = ["crun", "iptables", "mmdebstrap", "psmisc", "qemu-system-arm", "util-linux"]

_FOREIGN: dict[str, Callable[[], Unpacked]] = {
    **{f"containerd {name}": partial(fetch_containerd, r) for name, r in RELEASES.items()},
    **{f"QEMU of {r}": partial(tools.fetch_qemu, r) for r in tools.QEMU_RELEASES},
    "virtiofsd": tools.fetch_virtiofsd,
    "vhost-device-vsock": tools.fetch_vhost_device_vsock,
}


def main(arguments: Sequence[str]) -> int:
    """Set up and run all; ``arguments`` go to pytest in place of the whole suite."""
    progress = Progress()
    try:
        require_root()
        python = _set_up(progress)
        _check(progress, python)
        return _pytest(python, arguments)
    except (DeployError, KeyboardInterrupt) as error:
        print(f"test: {error or 'interrupted'}", file=sys.stderr)
        return 1


def _set_up(progress: Progress) -> Path:
    with progress.stage("Debian packages"):
        installed = apt.install_missing(sorted({*host_packages(), *_TEST_PACKAGES}))
    if installed:
        progress.note("installed " + " ".join(installed))
    venv = work_dir() / "venv"
    with progress.stage("Python packages in a virtual environment"):
        python = prepare_venv(venv, dependencies(tests=True))
    for what, fetch in _FOREIGN.items():
        with progress.stage(f"{what}, unpacked beside the system"):
            try:
                text = fetch().describe()
            except DeployError as error:
                # The tests that want it say so again, and those of the host's release fail.
                text = f"could not be had: {error}"
        progress.note(text)
    with progress.stage("guest kernel and image"):
        said = prepare_guest(python, prepare_runtime(work_dir() / "runtime", site_packages(venv)))
    for line in said.splitlines():
        progress.note(line)
    progress.note(run(["qemu-system-x86_64", "--version"], timeout=30).splitlines()[0])
    return python


def _check(progress: Progress, python: Path) -> None:
    checks: dict[str, list[str | Path]] = {
        "generated modules are current": ["protos/generate", "--check"],
        "ruff check": ["-m", "ruff", "check", "."],
        "ruff format": ["-m", "ruff", "format", "--check", "."],
        "mypy --strict": ["-m", "mypy"],
    }
    for title, words in checks.items():
        with progress.stage(title):
            run([python, *words], timeout=CHECK_TIMEOUT, cwd=REPOSITORY)


def _pytest(python: Path, arguments: Sequence[str]) -> int:
    words = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "--durations=15", *arguments]
    if any(not argument.startswith("-") for argument in arguments):
        return _finish({"the tests": _start(words)})
    # A VM that boots keeps one CPU busy, so two runs at a time take less long than one after
    # the other. What a run makes has names and directories of its own.
    aside = work_dir() / "tests-aside.log"
    with aside.open("wb") as output:
        running = {
            "end-to-end tests": _start([*words, "tests/e2e"]),
            "unit and integration tests": _start(
                [*words, "tests/unit", "tests/integration"], output
            ),
        }
        try:
            return _finish(running)
        finally:
            print(aside.read_text(errors="replace"), end="", flush=True)


def _start(words: Sequence[str], output: BinaryIO | None = None) -> subprocess.Popen[bytes]:
    # The image and the compiled modules are where the set-up has put them.
    env = {**os.environ, "KATAPY_WORK": str(work_dir())}
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        cwd=REPOSITORY,
        env=env,
    )


def _finish(running: Mapping[str, subprocess.Popen[bytes]]) -> int:
    """Wait for all of them; the first exit status that is not 0 counts."""
    end = time.monotonic() + TESTS_TIMEOUT
    codes = []
    try:
        for what, process in running.items():
            try:
                codes.append(process.wait(max(end - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                _interrupt(running.values())
                raise DeployError(f"{what} are not done after {TESTS_TIMEOUT:g} s") from None
    except KeyboardInterrupt:
        for process in running.values():
            process.wait()  # they have had the signal too, and clean up
        raise
    return next(filter(None, codes), 0)


def _interrupt(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGINT)  # has pytest take down what it has set up
    for process in left:
        try:
            process.wait(INTERRUPT_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
