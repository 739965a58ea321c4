"""VMs of Firecracker and Cloud Hypervisor: stand-ins, or the real programs where named."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from deploy.lib.runtime import image_dir
from deploy.lib.tools import fetch_qemu
from protos.kata import agent_pb2
from shim.ttrpc.client import open_client
from tests.integration.agent.conftest import LIMIT, Guest, busybox_root
from tests.standins.install import REAL_VARIABLES, Program, provide
from tests.standins.qemu import BINARY_VARIABLE
from tests.support import versions
from vmm.broadcast import Subscription
from vmm.cloud_hypervisor.cloud_hypervisor import CloudHypervisor
from vmm.events import Event
from vmm.firecracker.firecracker import FirecrackerHypervisor
from vmm.image.build import build_image
from vmm.image.store import GuestImage
from vmm.spec import MIB, AttachedDevice, BalloonDevice, BlockDevice, RngDevice, VmSpec
from vmm.version import ask_version

Vm = FirecrackerHypervisor | CloudHypervisor
MOUNT = "/run/kata-containers/sandbox/rootfs"
BOOT_LIMIT = 90.0


@pytest.fixture(scope="session")
def newer_qemu() -> Path:
    """A QEMU whose emulation can take a CPU away: that of Debian 13."""
    packages = versions.obtain("QEMU of trixie", "trixie", lambda: fetch_qemu("trixie"))
    return packages.program("/usr/bin/qemu-system-x86_64")


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The guest with our agent."""
    return build_image("debian", Path(image_dir()))


@pytest.fixture(scope="session")
def erofs_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container root file system as an erofs image of whole MiB."""
    base = tmp_path_factory.mktemp("disk")
    path = base / "rootfs.erofs"
    busybox_root(base / "tree")
    subprocess.run(["mkfs.erofs", "-Enoinline_data", path, base / "tree"], check=True, stdout=-3)
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // (2 * MIB)) * 2 * MIB)
    return path


@dataclass(frozen=True)
class Standins:
    """Makes VMs.

    Args:
        directory: for the programs.
        vsock_daemon: what the stand-ins need.
        spec: a small VM.
    """

    directory: Path
    vsock_daemon: Path
    spec: VmSpec

    def program(self, name: str, version: str, qemu: Path | None = None) -> Program:
        """The program to run; says which it is. A stand-in runs on the given QEMU."""
        found = provide(name, self.directory / (version or "any"), self.vsock_daemon, version)
        print(f"{name} {version}: {'real' if found.real else 'stand-in'}, {found.path}")
        if found.real and version:
            have = ask_version(found.path)
            if have[:2] != tuple(int(part) for part in version.split(".")[:2]):
                pytest.skip(f"about {name} {version}, and the real one named is {have}")
        if qemu is None or found.real:
            return found
        script = found.path.with_name(f"{name}-on-another-qemu")
        script.write_text(f'#!/bin/sh\nexec env {BINARY_VARIABLE}={qemu} {found.path} "$@"\n')
        script.chmod(0o755)
        return replace(found, path=script)

    def is_real(self, name: str) -> bool:
        """Whether the environment names the real program."""
        return bool(os.environ.get(REAL_VARIABLES[name]))

    def firecracker(self, version: str = "", **options: Any) -> FirecrackerHypervisor:
        """A VM of Firecracker that is not started."""
        spec = replace(self.spec, **options.pop("spec", {}))
        binary = self.program("firecracker", version).path
        return FirecrackerHypervisor(spec, binary=binary, **options)

    def cloud_hypervisor(self, version: str = "", **options: Any) -> CloudHypervisor:
        """A VM of Cloud Hypervisor that is not started."""
        spec = replace(self.spec, **options.pop("spec", {}))
        binary = self.program("cloud-hypervisor", version, options.pop("qemu", None)).path
        return CloudHypervisor(spec, binary=binary, **options)


@pytest.fixture
def standins(image: GuestImage, vhost_device_vsock: Path, tmp_path: Path) -> Iterator[Standins]:
    """What makes VMs, with a short runtime directory that must be empty again at the end."""
    with tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp") as directory:
        spec = VmSpec(
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=f"{image.kernel_args} quiet",
            image=BlockDevice("image", image.rootfs, read_only=True, shared=True),
            runtime_dir=Path(directory),
            channel="vsock",
            devices=(RngDevice(), BalloonDevice()),
            hotplug_slots=4,
        )
        yield Standins(tmp_path / "programs", vhost_device_vsock, spec)
        assert [path.name for path in Path(directory).iterdir()] == []


@asynccontextmanager
async def booted(made: Vm) -> AsyncIterator[tuple[Vm, Guest]]:
    """A running VM and its guest's agent."""
    async with made as vm:
        await vm.boot()
        async with agent_of(vm) as guest:
            yield vm, guest


def agent_of(vm: Vm) -> AbstractAsyncContextManager[Guest]:
    """A connection to a VM's agent."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Guest]:
        stream = await vm.dial_agent(BOOT_LIMIT)
        async with open_client(stream) as client:
            yield Guest(client, MOUNT)

    return connect()


async def seen(events: Subscription[Event], wanted: Event) -> None:
    """Wait for an event, whatever else happens."""
    with trio.fail_after(LIMIT):
        async for event in events:
            if event == wanted:
                return
    raise AssertionError(f"the VM ended without {wanted}")


async def mount(guest: Guest, handle: AttachedDevice) -> None:
    """Have the agent mount a disk as the root of the tests' containers."""
    storage = agent_pb2.Storage(
        driver="blk",
        source=str(handle.address),
        fstype="erofs",
        options=["ro"],
        mount_point=MOUNT,
    )
    request = agent_pb2.CreateSandboxRequest(sandbox_id="s", storages=[storage])
    await guest.agent.CreateSandbox(request, timeout=LIMIT)


async def shell(guest: Guest, script: str) -> str:
    """Run a line in a container on the mounted disk, with the guest's own /sys and /proc."""
    code, output, error = await guest.run("c", ["sh", "-c", script])
    assert code == 0, error
    return output.decode()
