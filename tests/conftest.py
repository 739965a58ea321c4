"""Options and marks of the whole suite."""

from __future__ import annotations

import shutil
from pathlib import Path

import hypothesis
import pytest

from deploy.lib.tools import QEMU_RELEASES, fetch_qemu, fetch_vhost_device_vsock, fetch_virtiofsd
from tests.support import versions

DEFAULT_RUNTIME = "io.containerd.katapy.v2"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("katapy")
    group.addoption(
        "--runtime",
        default=DEFAULT_RUNTIME,
        help="containerd runtime for the end-to-end tests (another one shows what is ours)",
    )
    group.addoption(
        "--containerd",
        default="1.6,1.7,2.1",
        help="containerd to test with, by commas: Debian's series, or an absolute path of a "
        "directory of programs for other versions; the full list runs on the first of 1.7, 2.1, "
        "1.6 among them, else the first, the core list on all",
    )


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes says more of the machine's other users than of the code.
    hypothesis.settings.register_profile("katapy", deadline=None)
    hypothesis.settings.load_profile("katapy")
    config.addinivalue_line("markers", "core: end-to-end test run on every containerd series")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, text in sorted(versions.used.items()):
        terminalreporter.write_line(f"{what}: {text}")


@pytest.fixture(scope="session", params=["host", *QEMU_RELEASES])
def qemu_program(request: pytest.FixtureRequest) -> Path:
    """QEMU of the host, of Debian 13 and of Debian unstable, one after another."""
    if request.param == "host":
        found = shutil.which("qemu-system-x86_64")
        assert found is not None, "qemu-system-x86 is not installed (deploy/test does that)"
        return Path(found)
    packages = versions.obtain(
        f"QEMU of {request.param}", request.param, lambda: fetch_qemu(request.param)
    )
    return packages.program("/usr/bin/qemu-system-x86_64")


@pytest.fixture(scope="session")
def rust_virtiofsd() -> Path:
    """The virtiofsd of Debian 13."""
    packages = versions.obtain("virtiofsd", "trixie", fetch_virtiofsd)
    return packages.program("/usr/libexec/virtiofsd")


@pytest.fixture(scope="session")
def vhost_device_vsock() -> Path:
    """The vsock daemon of Debian unstable."""
    packages = versions.obtain("vhost-device-vsock", "sid", fetch_vhost_device_vsock)
    return packages.program("/usr/bin/vhost-device-vsock")
