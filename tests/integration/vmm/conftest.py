"""VMs of the test guest."""

from __future__ import annotations

import os
import select
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.vmm import guest
from tests.integration.vmm.guest import GuestFiles, GuestShell
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import SerialDevice, VmSpec

COMMANDS = SerialDevice("cmd", guest.COMMAND_PORT)


@pytest.fixture(scope="session")
def guest_files() -> GuestFiles:
    return guest.build()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe-cache")


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A directory with a short path, as sockets need; empty again at the end."""
    with tempfile.TemporaryDirectory(prefix="vmm-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk image of 8 MiB that begins with known bytes."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(b"katapy-disk")
        file.truncate(8 << 20)
    return path


@pytest.fixture
def spec(guest_files: GuestFiles, runtime_dir: Path) -> VmSpec:
    return VmSpec(
        kernel=guest_files.kernel,
        initrd=guest_files.initrd,
        cmdline="quiet",
        runtime_dir=runtime_dir,
        accel="tcg",
        devices=(COMMANDS,),
        hotplug_slots=4,
    )


class Boot(Protocol):
    """Boots a VM; gives it with the guest's shell."""

    def __call__(
        self, spec: VmSpec, **options: Any
    ) -> AbstractAsyncContextManager[tuple[QemuHypervisor, GuestShell]]: ...


@pytest.fixture
def boot(cache_dir: Path) -> Boot:
    @asynccontextmanager
    async def make(
        spec: VmSpec, **options: Any
    ) -> AsyncIterator[tuple[QemuHypervisor, GuestShell]]:
        async with QemuHypervisor(spec, cache_dir=cache_dir, **options) as vm:
            await vm.boot()
            async with await vm.dial_agent(60):
                shell = await GuestShell.open(spec.runtime_dir / "cmd.sock")
                try:
                    yield vm, shell
                finally:
                    await shell.aclose()

    return make


@pytest.fixture(autouse=True)
def nothing_left(runtime_dir: Path) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child process or a file behind."""
    # Reading the directory opens a descriptor of its own, before and after alike.
    before = len(os.listdir("/proc/self/fd"))
    children = _children()
    yield
    left = {pid for pid in _children() - children if not _has_ended(int(pid))}
    assert left == set(), "a child process is left"
    assert len(os.listdir("/proc/self/fd")) <= before, "a descriptor is left"
    assert [path.name for path in runtime_dir.iterdir() if path.is_socket()] == []


def _has_ended(pid: int) -> bool:
    """Collect what a killed daemon left to us, as a session that is a subreaper must."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(5000):
            return False
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    return True


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
