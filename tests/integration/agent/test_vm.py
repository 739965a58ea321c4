"""The agent as PID 1 of a real guest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from deploy.lib.runtime import image_dir
from protos.kata import agent_pb2
from protos.katapy import extension_pb2
from shim.ttrpc.client import open_client
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, Guest, busybox_root, oci_spec
from vmm.image.build import build_image
from vmm.image.store import GuestImage, KernelKind
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import BlockDevice, PciPath, VmSpec

pytestmark = [pytest.mark.vm, pytest.mark.root]
ROOTFS = "/run/kata-containers/sandbox/rootfs"


@pytest.fixture(scope="module")
def image() -> GuestImage:
    kind: KernelKind = "tuned" if os.environ.get("KATAPY_TEST_KERNEL") == "tuned" else "debian"
    return build_image(kind, Path(os.environ.get("KATAPY_TEST_IMAGES", image_dir())))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container root file system as an erofs image."""
    base = tmp_path_factory.mktemp("disk")
    path = base / "rootfs.erofs"
    busybox_root(base / "tree")
    subprocess.run(["mkfs.erofs", "-Enoinline_data", path, base / "tree"], check=True, stdout=-3)
    return path


class Vm:
    """A booted guest and its disk's place in it."""

    def __init__(self, hypervisor: QemuHypervisor, pci_path: str) -> None:
        self.hypervisor = hypervisor
        self.pci_path = pci_path

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Guest]:
        """One connection to the agent; the port has one at a time."""
        stream = await self.hypervisor.dial_agent(60)
        async with open_client(stream) as client:
            yield Guest(client, ROOTFS)


@pytest.fixture
def extra() -> dict[str, Any]:
    """What a test's VM has besides; tests override it by a parameter."""
    return {}


@pytest.fixture
async def vm(
    image: GuestImage, disk: Path, tmp_path: Path, extra: dict[str, Any]
) -> AsyncIterator[Vm]:
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs QEMU")
    with tempfile.TemporaryDirectory(prefix="agent-", dir="/tmp") as runtime_dir:
        spec = VmSpec(
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=f"{image.kernel_args} quiet katapy.channel=serial",
            image=BlockDevice("image", image.rootfs, read_only=True, shared=True),
            runtime_dir=Path(runtime_dir),
            **extra,
        )
        async with QemuHypervisor(spec, cache_dir=tmp_path) as hypervisor:
            await hypervisor.boot()
            handle = await hypervisor.attach(BlockDevice("c", disk, read_only=True, shared=True))
            assert isinstance(handle.address, PciPath)
            yield Vm(hypervisor, str(handle.address))


@pytest.fixture
async def guest(vm: Vm) -> AsyncIterator[Guest]:
    """The guest with a sandbox whose storage is the container root file system."""
    async with vm.connect() as connected:
        storage = agent_pb2.Storage(
            driver="blk",
            source=vm.pci_path,
            fstype="erofs",
            options=["ro"],
            mount_point=ROOTFS,
        )
        request = agent_pb2.CreateSandboxRequest(
            sandbox_id="s", hostname="pod", dns=["nameserver 192.0.2.1"], storages=[storage]
        )
        await connected.agent.CreateSandbox(request, timeout=LIMIT)
        yield connected


def limited(args: list[str], name: str, **resources: Any) -> dict[str, Any]:
    """Extra configuration: a cgroup with limits."""
    linux = dict(oci_spec("", args)["linux"])
    return {"linux": {**linux, "cgroupsPath": f"/katapy/{name}", "resources": resources}}


async def test_container_life(guest: Guest, vm: Vm) -> None:
    hello = await guest.extension.Hello(extension_pb2.HelloRequest(), timeout=LIMIT)
    stamps = dict(hello.boot_stamps)
    script = "echo out; echo err >&2; cat /proc/mounts; exit 7"
    code, output, error = await guest.run("c", ["sh", "-c", script])
    assert (code, error) == (7, b"err\n")
    assert output.startswith(b"out\n")
    await guest.create("c", ["sleep", "1000"], **limited([], "c"))
    await guest.start("c")
    began = time.monotonic()
    await guest.exec("c", "e", ["true"])
    assert await guest.wait("c", "e") == 0
    print(f"boot stamps (us): {stamps}; exec of true: {time.monotonic() - began:.3f} s")

    stats = await guest.agent.StatsContainer(
        agent_pb2.StatsContainerRequest(container_id="c"), timeout=LIMIT
    )
    assert stats.cgroup_stats.cpu_stats.cpu_usage.total_usage > 0
    assert stats.cgroup_stats.memory_stats.usage.usage > 0
    assert stats.cgroup_stats.memory_stats.stats["anon"] > 0
    assert stats.cgroup_stats.pids_stats.current == 1

    await guest.signal("c", signal.SIGKILL)
    assert await guest.wait("c") == 137
    await guest.remove("c")
    await guest.agent.DestroySandbox(agent_pb2.DestroySandboxRequest(), timeout=LIMIT)
    with trio.fail_after(LIMIT):
        await vm.hypervisor.exited.wait()


async def test_a_pci_device_for_a_driver_of_the_guest(guest: Guest, vm: Vm) -> None:
    host, other = "0000:41:00.0", "0000:42:00.0"
    passed = agent_pb2.Device(
        id="4", type="vfio-pci-gk", container_path="/dev/vfio/4", options=[f"{host}={vm.pci_path}"]
    )
    env = ["PATH=/bin", f"PCIDEVICE_VENDOR_NIC={host},{other}"]
    args = ["sh", "-c", "echo PCIDEVICE=$PCIDEVICE_VENDOR_NIC"]
    told = {**oci_spec("", args)["process"], "env": env}
    config = json.dumps(oci_spec(ROOTFS, args, process=told)).encode()
    request = agent_pb2.CreateContainerRequest(
        container_id="c", oci_spec_json=config, devices=[passed]
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)
    await guest.start("c")
    code, output, _ = await guest.finish("c")
    assert code == 0
    await guest.remove("c")
    (line,) = (line for line in output.decode().splitlines() if line.startswith("PCIDEVICE"))
    address = line.partition("=")[2].partition(",")[0]
    assert line == f"PCIDEVICE={address},{other}"
    assert address.startswith("0000:")
    assert address != host
    for bad, message in ((f"{host}=1d/1f", "did not appear"), (host, "ADDRESS=GUEST-PATH")):
        request.devices[0].options[:] = [bad]
        with pytest.raises(TtrpcError, match=message):
            await guest.agent.CreateContainer(request, timeout=LIMIT)


# A network card of QEMU's in a group of its own.
CARD = (
    *("-netdev", "hubport,id=spare,hubid=0"),
    *("-device", "pcie-root-port,id=spare-port,bus=pcie.0,chassis=99,addr=1a.0"),
    *("-device", "e1000e,bus=spare-port,netdev=spare,romfile="),
)


@pytest.mark.parametrize("extra", [{"iommu": True, "extra_args": CARD}])
async def test_a_pci_device_that_the_container_drives_itself(guest: Guest) -> None:
    """A container has the group and opens it as a program that drives the device would."""
    passed = agent_pb2.Device(
        id="4",
        type="vfio-pci",
        container_path="/dev/vfio/4",
        options=["0000:41:00.0=1a/00"],
    )
    # The number is the guest's; opening takes a device rule and an IOMMU behind it.
    script = "ls /dev/vfio; for node in /dev/vfio/*; do exec 3<>$node; done; echo $PCIDEVICE_NIC"
    args = ["sh", "-ec", script]
    env = ["PATH=/bin", "PCIDEVICE_NIC=0000:41:00.0"]
    node = {"path": "/dev/vfio/4", "type": "c", "major": 0, "minor": 1}
    linux = {
        **oci_spec("", args)["linux"],
        "devices": [node],
        "cgroupsPath": "/katapy/c",
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "access": "m"},
            ]
        },
    }
    process = {**oci_spec("", args)["process"], "env": env}
    config = json.dumps(oci_spec(ROOTFS, args, process=process, linux=linux)).encode()
    request = agent_pb2.CreateContainerRequest(
        container_id="c", oci_spec_json=config, devices=[passed]
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)
    await guest.start("c")
    code, output, error = await guest.finish("c")
    assert code == 0, error
    group, container, address = output.decode().split()
    assert group.isdigit()
    assert container == "vfio"
    assert address.startswith("0000:")
    assert address != "0000:41:00.0"
    await guest.remove("c")


async def test_pause_update_and_oom(guest: Guest) -> None:
    script = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"
    await guest.create("c", ["sh", "-c", script], **limited([], "c", memory={"limit": 64 << 20}))
    await guest.start("c")
    streams = guest.streams("c")
    await streams.attach()
    await streams.until(b"2\n")
    await guest.agent.PauseContainer(
        agent_pb2.PauseContainerRequest(container_id="c"), timeout=LIMIT
    )
    with trio.move_on_after(1):  # what was on the way
        while True:
            await streams.receive()
    with trio.move_on_after(1) as scope:
        await streams.receive()
    assert scope.cancelled_caught, "output came from a paused container"
    await guest.agent.ResumeContainer(
        agent_pb2.ResumeContainerRequest(container_id="c"), timeout=LIMIT
    )
    assert await streams.receive()

    async def limit() -> int:
        request = agent_pb2.StatsContainerRequest(container_id="c")
        stats = await guest.agent.StatsContainer(request, timeout=LIMIT)
        return int(stats.cgroup_stats.memory_stats.usage.limit)

    assert await limit() == 64 << 20
    update = agent_pb2.UpdateContainerRequest(container_id="c", resources={"Memory": {"Limit": -1}})
    await guest.agent.UpdateContainer(update, timeout=LIMIT)
    assert await limit() == (1 << 64) - 1
    update.resources.Memory.Limit = 8 << 20
    await guest.agent.UpdateContainer(update, timeout=LIMIT)
    assert await limit() == 8 << 20
    await guest.exec("c", "hog", ["dd", "if=/dev/zero", "of=/dev/null", "bs=32M", "count=4"])
    event = await guest.agent.GetOOMEvent(agent_pb2.GetOOMEventRequest(), timeout=LIMIT)
    assert event.container_id == "c"
    assert await guest.wait("c", "hog") == 137
    await guest.remove("c")


async def test_bulk_streams(guest: Guest) -> None:
    size = 64 << 20
    await guest.create("c", ["sh", "-c", f"head -c {size} /dev/zero"])
    streams = guest.streams("c")
    await streams.attach()
    began = time.monotonic()
    await guest.start("c")
    await streams.read_all()
    took = time.monotonic() - began
    assert streams.output[2] == bytes(size)
    print(f"stdout: {size / took / (1 << 20):.0f} MiB/s")
    await guest.remove("c")

    data = hashlib.shake_128(b"stdin").digest(16 << 20)
    await guest.create("c", ["sha256sum"])
    await guest.start("c")
    streams = guest.streams("c")
    await streams.attach()
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(streams.read_all)
        await streams.write(data)
        await streams.frame(channel=1, eof=True)
    print(f"stdin: {16 / (time.monotonic() - began):.0f} MiB/s")
    assert streams.output[2].split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_the_host_goes_away_and_comes_back(guest: Guest, vm: Vm) -> None:
    script = "echo one; read x; head -c 8388608 /dev/zero; echo two"
    await guest.create("c", ["sh", "-c", script])
    await guest.start("c")
    streams = guest.streams("c")
    await streams.attach()
    await streams.until(b"one\n")
    await streams.frame(channel=1, data=b"\n")
    await streams.receive()
    guest.client.close()  # in the middle of bulk output
    async with vm.connect() as second:
        again = second.streams("c")
        await again.attach()
        await again.read_all()
        # What was on its way when the host went is gone; the rest is there, in order.
        assert again.output[2].endswith(b"\0two\n")
        assert await second.wait("c") == 0
        with pytest.raises(TtrpcError):
            await second.wait("c", "nothing")
        await second.remove("c")


@pytest.mark.parametrize("is_ipv6", [False, True])
async def test_packet_filter_of_the_image(vm: Vm, is_ipv6: bool) -> None:
    rules = (
        b"*nat\n:MESH - [0:0]\n-A PREROUTING -p tcp -j MESH\n"
        b"-A MESH -p tcp -m multiport --dports 80,443 -m comment --comment mesh "
        b"-j REDIRECT --to-ports 15001\nCOMMIT\n"
    )
    async with vm.connect() as guest:
        put = agent_pb2.SetIPTablesRequest(is_ipv6=is_ipv6, data=rules)
        await guest.agent.SetIPTables(put, timeout=LIMIT)
        look = agent_pb2.GetIPTablesRequest(is_ipv6=is_ipv6)
        there = await guest.agent.GetIPTables(look, timeout=LIMIT)
    assert b"--dports 80,443" in there.data
    assert b"--to-ports 15001" in there.data
