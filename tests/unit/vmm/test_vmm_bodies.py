"""Whatever VM is described: each version is sent only what its API description has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.standins import schema
from vmm.cloud_hypervisor.features import Features as CloudHypervisorFeatures
from vmm.cloud_hypervisor.plan import Landlock, vm_config
from vmm.cloud_hypervisor.plan import make_plan as plan_cloud_hypervisor
from vmm.errors import VmmError
from vmm.firecracker.features import Features as FirecrackerFeatures
from vmm.firecracker.plan import Inside, boot_requests
from vmm.firecracker.plan import make_plan as plan_firecracker
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    Device,
    FsDevice,
    NetDevice,
    PanicDevice,
    PmemDevice,
    RateLimit,
    RngDevice,
    VfioDevice,
    VmSpec,
    VsockDevice,
)
from vmm.version import parse_version

MAC = "02:00:00:00:00:01"
RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A file that is kernel, disk and pmem in one."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"\x7fELF")
        file.truncate(2 * MIB)
    return path


LIMITS = st.none() | st.builds(
    RateLimit, *(st.integers(0, 1 << 40) for _ in ("bytes", "burst", "ops", "burst"))
)


def devices_of(path: Path) -> st.SearchStrategy[tuple[Device, ...]]:
    """Devices of every kind; their ids are made unique afterwards."""
    one_of = st.one_of(
        st.builds(
            BlockDevice,
            id=st.just("block"),
            path=st.just(path),
            read_only=st.booleans(),
            serial=st.sampled_from(["", "serial"]),
            discard=st.booleans(),
            flush=st.booleans(),
            aio=st.sampled_from(["auto", "io_uring"]),
            limit=LIMITS,
        ),
        st.builds(
            NetDevice,
            id=st.just("net"),
            mac=st.just(MAC),
            tap=st.just("tap0"),
            mtu=st.integers(0, 9000),
            rx_limit=LIMITS,
            tx_limit=LIMITS,
        ),
        st.builds(PmemDevice, id=st.just("pmem"), path=st.just(path), read_only=st.booleans()),
        st.just(FsDevice("fs", "tag", path)),
        st.just(VfioDevice("vfio", "0000:01:00.0")),
        st.builds(BalloonDevice, free_page_reporting=st.booleans()),
        st.just(RngDevice()),
        st.just(PanicDevice()),
        st.builds(VsockDevice, cid=st.sampled_from([0, 3, 77])),
    )
    return st.lists(one_of, max_size=6, unique_by=lambda device: device.id).map(tuple)


def specs_of(path: Path) -> st.SearchStrategy[VmSpec]:
    """VMs of those devices."""
    return st.builds(
        VmSpec,
        kernel=st.just(path),
        runtime_dir=st.just(path.parent),
        vcpus=st.integers(1, 4),
        memory_bytes=st.integers(1, 4096).map(lambda mib: mib * MIB),
        max_memory_bytes=st.sampled_from([0, 8192 * MIB]),
        memory_hotplug=st.sampled_from(["virtio-mem", "dimm"]),
        initrd=st.sampled_from([None, path]),
        image=st.just(BlockDevice("image", path, read_only=True)),
        devices=devices_of(path),
        channel=st.just("vsock"),
        console=st.booleans(),
        hugepages=st.booleans(),
        hotplug_slots=st.integers(0, 20),
    )


FIRECRACKER_TYPES = {
    "metrics": "Metrics",
    "machine-config": "MachineConfiguration",
    "boot-source": "BootSource",
    "serial": "SerialDevice",
    "drives": "Drive",
    "network-interfaces": "NetworkInterface",
    "pmem": "Pmem",
    "vsock": "Vsock",
    "entropy": "EntropyDevice",
    "balloon": "Balloon",
    "hotplug": "MemoryHotplugConfig",
}


@pytest.mark.parametrize("pci", [False, True], ids=["mmio", "pci"])
@pytest.mark.parametrize("version", schema.versions("firecracker"))
def test_firecracker(version: str, pci: bool, kernel: Path) -> None:
    types = schema.load("firecracker", version)
    parsed = parse_version(version)
    assert parsed is not None
    features = FirecrackerFeatures(parsed, pci)
    built: list[int] = []

    @RELAXED
    @given(specs_of(kernel))
    def run(spec: VmSpec) -> None:
        try:
            plan = plan_firecracker(spec, features)
            requests = boot_requests(spec, plan, Inside("/v", "/c", "/m", "/p"))
        except VmmError:
            return  # refused before anything was sent
        built.append(len(requests))
        for _, target, body in requests:
            name = FIRECRACKER_TYPES[target.split("/")[1]]
            schema.check(types, name, body, unknown="refuse")

    run()
    assert built or (pci and version.startswith("1.12")), "every VM was refused"


@pytest.mark.parametrize("version", schema.versions("cloud-hypervisor"))
def test_cloud_hypervisor(version: str, kernel: Path) -> None:
    types = schema.load("cloud-hypervisor", version)
    parsed = parse_version(version)
    assert parsed is not None
    features = CloudHypervisorFeatures(parsed)
    built: list[Any] = []

    @RELAXED
    @given(specs_of(kernel), st.booleans())
    def run(spec: VmSpec, confined: bool) -> None:
        landlock = Landlock(((Path("/srv"), "rw"),)) if confined else None
        try:
            plan = plan_cloud_hypervisor(spec, features)
        except VmmError:
            return
        config = vm_config(plan, vsock=Path("/v"), console=Path("/c"), landlock=landlock)
        # The VMM would drop what it does not know without a word.
        built.append(schema.check(types, "VmConfig", config, unknown="refuse"))

    run()
    assert built, "every VM was refused"
