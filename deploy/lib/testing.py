"""`deploy/test`: set everything up, then run every check and test of the project."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

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
    words = [str(python), "-m", "pytest", "--durations=15", *arguments]
    # The image and the compiled modules are where the set-up has put them.
    env = {**os.environ, "KATAPY_WORK": str(work_dir())}
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=REPOSITORY, env=env) as process:
        try:
            return process.wait(TESTS_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise DeployError(f"the tests are not done after {TESTS_TIMEOUT:g} s") from None
        except KeyboardInterrupt:
            process.wait()  # pytest has had the signal too, and cleans up
            raise
