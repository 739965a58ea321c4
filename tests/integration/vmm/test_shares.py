"""What needs a daemon beside QEMU, and what QEMU shares by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.integration.vmm.conftest import Boot
from vmm.channel import dial_hybrid
from vmm.errors import GuestTimeout, InvalidConfig, Unsupported
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import FsDevice, NetDevice, NinePDevice, VmSpec
from vmm.virtiofsd import run_virtiofsd
from vmm.vsock import run_vhost_device_vsock

pytestmark = [pytest.mark.vm, pytest.mark.root]


@pytest.fixture(params=["c", "rust"])
def virtiofsd(request: pytest.FixtureRequest) -> Path:
    if request.param == "rust":
        program: Path = request.getfixturevalue("rust_virtiofsd")
        return program
    program = Path("/usr/lib/qemu/virtiofsd")
    if not program.exists():
        pytest.skip("this release's QEMU has no virtiofsd of its own")
    return program


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "with,comma and space"
    directory.mkdir()
    (directory / "hello").write_text("from the host")
    return directory


@pytest.mark.parametrize("machine", ["q35", "microvm"])
async def test_virtiofs(
    spec: VmSpec, boot: Boot, shared: Path, virtiofsd: Path, machine: str
) -> None:
    socket = spec.runtime_dir / "fs.sock"
    async with run_virtiofsd(shared, socket, binary=virtiofsd) as daemon:
        device = FsDevice("share", "kataShared", socket)
        spec = replace(spec, machine=machine, devices=(*spec.devices, device))
        async with boot(spec) as (_, shell):
            await shell.run("mount -t virtiofs kataShared /mnt")
            assert await shell.run("cat /mnt/hello") == "from the host"
            await shell.run("echo from the guest > /mnt/back; chown 7:8 /mnt/back; sync")
            status = (shared / "back").stat()
            assert (status.st_uid, status.st_gid) == (7, 8)
            assert (shared / "back").read_text() == "from the guest\n"
        assert daemon.pid
    assert daemon.exited.is_set()
    assert not socket.exists()


async def test_virtiofs_hot(spec: VmSpec, boot: Boot, shared: Path, virtiofsd: Path) -> None:
    socket = spec.runtime_dir / "fs.sock"
    async with (
        run_virtiofsd(shared, socket, binary=virtiofsd),
        boot(replace(spec, shared_memory=True)) as (vm, shell),
    ):
        handle = await vm.attach(FsDevice("share", "hot", socket))
        await shell.until("grep -q ' /mnt ' /proc/mounts || mount -t virtiofs hot /mnt 2>/dev/null")
        assert await shell.run("cat /mnt/hello; umount /mnt") == "from the host"
        await vm.detach(handle, 20)


async def test_hot_share_needs_shared_memory(spec: VmSpec, boot: Boot) -> None:
    async with boot(spec) as (vm, _):
        with pytest.raises(Unsupported, match="fs_hot"):
            await vm.attach(FsDevice("share", "hot", Path("/nonexistent")))


async def test_virtiofsd_killed(shared: Path, runtime_dir: Path, virtiofsd: Path) -> None:
    async with run_virtiofsd(shared, runtime_dir / "fs.sock", binary=virtiofsd) as daemon:
        daemon.signal(signal.SIGKILL)
        with trio.fail_after(10):
            await daemon.exited.wait()
        assert daemon.returncode == -signal.SIGKILL


async def test_virtiofsd_missing(shared: Path, runtime_dir: Path) -> None:
    socket = runtime_dir / "fs.sock"
    with pytest.raises(InvalidConfig, match="no virtiofsd"):
        async with run_virtiofsd(shared, socket, binary="/nonexistent/virtiofsd"):
            pytest.fail("started")
    with pytest.raises(InvalidConfig, match="is no virtiofsd we know"):
        async with run_virtiofsd(shared, socket, binary="/bin/true"):
            pytest.fail("started")
    with pytest.raises(InvalidConfig, match="no directory"):
        async with run_virtiofsd(shared / "hello", socket):
            pytest.fail("started")


@pytest.mark.parametrize("machine", ["q35", "microvm"])
async def test_9p_device(spec: VmSpec, boot: Boot, shared: Path, machine: str) -> None:
    # Debian's cloud kernel has no 9p driver; that the device is there shows on its bus.
    device = NinePDevice("share", "nine", shared)
    spec = replace(spec, machine=machine, devices=(*spec.devices, device))
    async with boot(spec) as (_, shell):
        assert "0x0009" in await shell.run("cat /sys/bus/virtio/devices/*/device")


async def test_hybrid_vsock(spec: VmSpec, boot: Boot, vhost_device_vsock: Path) -> None:
    async with run_vhost_device_vsock(spec.runtime_dir, binary=vhost_device_vsock) as vsock:
        assert vsock.device.uds is not None
        with trio.move_on_after(0.2) as scope:
            await dial_hybrid(vsock.device.uds, 1024)
        assert scope.cancelled_caught
        spec = replace(spec, devices=(*spec.devices, vsock.device))
        async with boot(spec) as (_, shell):
            assert "0x0013" in await shell.run("cat /sys/bus/virtio/devices/*/device")


async def test_hybrid_vsock_guest_that_does_not_listen(
    spec: VmSpec, vhost_device_vsock: Path
) -> None:
    async with run_vhost_device_vsock(spec.runtime_dir, binary=vhost_device_vsock) as vsock:
        spec = replace(spec, channel="vsock", devices=(*spec.devices, vsock.device))
        async with QemuHypervisor(spec) as vm:
            await vm.boot()
            with pytest.raises(GuestTimeout):
                await vm.dial_agent(1)


async def test_vsock_daemon_missing(runtime_dir: Path) -> None:
    with pytest.raises(InvalidConfig, match="install vhost-device-vsock"):
        async with run_vhost_device_vsock(runtime_dir, binary="/nonexistent/daemon"):
            pytest.fail("started")


@pytest.fixture
def netns() -> Iterator[Path]:
    """A network namespace with a tap in it."""
    name = "katapy-vmm-test"
    assert shutil.which("ip")
    _ip("netns", "add", name)
    _ip("-n", name, "tuntap", "add", "tap0", "mode", "tap")
    _ip("-n", name, "link", "set", "tap0", "up")
    yield Path("/run/netns") / name
    _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


def _inode(path: Path | str) -> int:
    return os.stat(path).st_ino


async def test_runs_in_the_pods_network_namespace(spec: VmSpec, boot: Boot, netns: Path) -> None:
    tap = NetDevice("eth", "02:00:00:00:00:09", tap="tap0", mtu=1300)
    with netns.open() as file:
        spec = replace(spec, netns=file.fileno(), devices=(*spec.devices, tap))
        async with boot(spec) as (vm, shell):
            assert _inode(f"/proc/{vm.pid}/ns/net") == _inode(netns) != _inode("/proc/self/ns/net")
            assert await shell.run("cat /sys/class/net/eth0/mtu") == "1300"
            await shell.run("ip addr add 10.9.8.2/24 dev eth0; ip link set eth0 up")
            await shell.until("[ $(cat /sys/class/net/eth0/carrier) = 1 ]")
