"""Firecracker: what each version is told, what it refuses, and where devices go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmm.errors import Conflict, InvalidConfig, LimitExceeded, Unsupported
from vmm.events import ExitCause
from vmm.firecracker import bodies
from vmm.firecracker.features import Features
from vmm.firecracker.firecracker import exit_reason
from vmm.firecracker.launch import capabilities, vm_id
from vmm.firecracker.metrics import Counters
from vmm.firecracker.plan import Inside, Plan, boot_requests, make_plan
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    Device,
    DeviceNode,
    FsDevice,
    NetDevice,
    NinePDevice,
    PanicDevice,
    PciPath,
    PmemDevice,
    RateLimit,
    RngDevice,
    SerialDevice,
    VfioDevice,
    VmSpec,
    VsockDevice,
)
from vmm.version import Version, parse_version

MAC = "02:00:00:00:00:01"


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF rest")
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    return VmSpec(
        kernel=kernel,
        runtime_dir=tmp_path,
        cmdline="quiet -- init-word",
        image=BlockDevice("image", image, read_only=True, shared=True),
        channel="vsock",
        devices=(RngDevice(), BalloonDevice()),
    )


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return path


def features(version: str = "1.16.1", *, pci: bool = False) -> Features:
    parsed = parse_version(version)
    assert parsed is not None
    return Features(parsed, pci)


def plan_of(spec: VmSpec, version: str = "1.16.1", *, pci: bool = False) -> Plan:
    return make_plan(spec, features(version, pci=pci))


def bodies_of(spec: VmSpec, version: str = "1.16.1", *, pci: bool = False) -> dict[str, Any]:
    plan = plan_of(spec, version, pci=pci)
    requests = boot_requests(spec, plan, Inside("/v", "/c", "/m", "/p"))
    assert all(method == "PUT" for method, _, _ in requests)
    return {target: body for _, target, body in requests}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Firecracker v1.12.1\n\nExit code", Version(1, 12, 1)),
        ("Firecracker v1.17.0-dev", Version(1, 17)),
        ("cloud-hypervisor v51.1", Version(51, 1)),
        ("v46.0.0-45-g1234", Version(46, 0)),
        ("nothing", None),
    ],
)
def test_versions(text: str, version: Version | None) -> None:
    assert parse_version(text) == version


def test_requests_of_a_plain_vm(spec: VmSpec) -> None:
    asked = bodies_of(replace(spec, vcpus=2, memory_bytes=512 * MIB, hotplug_slots=0))
    assert asked["/machine-config"] == {"vcpu_count": 2, "mem_size_mib": 512}
    assert asked["/vsock"] == {"guest_cid": 3, "uds_path": "/v"}
    assert asked["/serial"] == {"serial_out_path": "/c"}
    assert asked["/entropy"] == {}
    line = asked["/boot-source"]["boot_args"]
    assert line.startswith("quiet ")
    assert line.endswith(" -- init-word")
    words = line.split()
    assert {"reboot=k", "panic=-1", "pci=off", "root=/dev/vda", "ro"} <= set(words)
    assert {"katapy.channel=vsock", "console=ttyS0"} <= set(words)
    drive = next(body for target, body in asked.items() if target.startswith("/drives/"))
    assert drive["is_root_device"] is False
    assert drive["is_read_only"] is True
    assert drive["cache_type"] == "Writeback"


@pytest.mark.parametrize(
    ("version", "fields"), [("1.12.1", set()), ("1.14.1", {"free_page_reporting"})]
)
def test_a_field_is_sent_only_to_versions_that_know_it(
    spec: VmSpec, version: str, fields: set[str]
) -> None:
    asked = bodies_of(spec, version)
    assert set(asked["/balloon"]) == {"amount_mib", "deflate_on_oom"} | fields
    assert ("/serial" in asked) == (version != "1.12.1")
    net = NetDevice("eth0", MAC, tap="tap0", mtu=1400)
    asked = bodies_of(replace(spec, devices=(net,)), version)
    (card,) = (body for target, body in asked.items() if "/network-interfaces/" in target)
    assert set(card) == {"iface_id", "host_dev_name", "guest_mac"}


def test_mtu_and_limits_of_a_card(spec: VmSpec) -> None:
    limit = RateLimit(bytes_per_second=1000, ops_per_second=5, ops_burst=7)
    net = NetDevice("eth-0", MAC, tap="tap0", mtu=1400, tx_limit=limit)
    body = bodies.interface(net, "net1", features())
    assert body == {
        "iface_id": "net1",
        "host_dev_name": "tap0",
        "guest_mac": MAC,
        "mtu": 1400,
        "tx_rate_limiter": {
            "bandwidth": {"size": 1000, "refill_time": 1000},
            "ops": {"size": 5, "refill_time": 1000, "one_time_burst": 7},
        },
    }


def test_a_limit_is_taken_away_by_empty_buckets() -> None:
    empty = {"size": 0, "refill_time": 0}
    assert bodies.limiter(None, change=True) == {"bandwidth": empty, "ops": empty}
    assert bodies.limiter(RateLimit(ops_per_second=3)) == {"ops": {"size": 3, "refill_time": 1000}}


REFUSED_DEVICES: list[tuple[Device, str]] = [
    (FsDevice("f", "tag", Path("/s")), "fs_share"),
    (NinePDevice("n", "tag", Path("/")), "ninep"),
    (VfioDevice("v", "0000:01:00.0"), "vfio_cold"),
    (SerialDevice("s", "port"), "serial_agent"),
    (PanicDevice(), "guest_panic_event"),
    (NetDevice("fds", MAC, fds=(5,)), "nic_by_fd"),
]


@pytest.mark.parametrize(
    ("device", "feature"), REFUSED_DEVICES, ids=[feature for _, feature in REFUSED_DEVICES]
)
def test_devices_there_are_not(spec: VmSpec, device: Device, feature: str) -> None:
    spec = replace(spec, devices=(device,))
    with pytest.raises(Unsupported, match=r"Firecracker 1\.16\.1") as caught:
        bodies_of(spec)
    assert caught.value.feature == feature


def test_what_a_version_lacks_names_the_one_that_has_it(spec: VmSpec, disk: Path) -> None:
    grows = replace(spec, max_memory_bytes=spec.memory_bytes * 2)
    with pytest.raises(Unsupported, match=r"Firecracker 1\.13\.0.*mem_up.*1\.14 or later"):
        plan_of(grows, "1.13.0")
    with pytest.raises(Unsupported, match=r"pmem_cold.*1\.14 or later"):
        bodies_of(replace(spec, devices=(PmemDevice("p", disk),)), "1.12.1")
    limited = PmemDevice("p", disk, limit=RateLimit(ops_per_second=1))
    with pytest.raises(Unsupported, match=r"rate_limit.*1\.16 or later"):
        bodies_of(replace(spec, devices=(limited,)), "1.14.1")
    with pytest.raises(InvalidConfig, match=r"no PCI.*1\.13 or later"):
        plan_of(spec, "1.12.1", pci=True)
    with pytest.raises(InvalidConfig, match=r"1\.11\.0: 1\.12 or later"):
        plan_of(spec, "1.11.0")


def test_bad_specs(spec: VmSpec, disk: Path) -> None:
    packed = spec.runtime_dir / "bzImage"
    packed.write_bytes(b"MZ...")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"kernel": spec.runtime_dir / "none"}, InvalidConfig, "kernel: no file"),
        ({"initrd": spec.runtime_dir / "none"}, InvalidConfig, "initrd: no file"),
        ({"kernel": packed}, InvalidConfig, r"uncompressed kernels.*1\.17"),
        ({"vcpus": 33}, InvalidConfig, "1 to 32 virtual CPUs"),
        ({"max_vcpus": 4}, Unsupported, "vcpu_up.*max_vcpus must be 0"),
        ({"memory_bytes": MIB + 1}, InvalidConfig, "whole MiB"),
        ({"channel": "serial"}, Unsupported, "serial_agent.*vsock"),
        ({"accel": "tcg"}, InvalidConfig, "needs KVM"),
        (
            {"max_memory_bytes": 512 * MIB, "memory_hotplug": "dimm"},
            InvalidConfig,
            "virtio-mem only",
        ),
        ({"devices": (RngDevice(), RngDevice("r2"))}, InvalidConfig, "one RngDevice only"),
        ({"devices": (RngDevice("image"),)}, Conflict, "image"),
        (
            {"devices": (BlockDevice("d", disk, direct=True),)},
            InvalidConfig,
            "page cache",
        ),
        ({"devices": (BlockDevice("d", disk, serial="x"),)}, InvalidConfig, "serial number"),
        ({"devices": (BlockDevice("d", disk, aio="native"),)}, InvalidConfig, "io_uring"),
        ({"devices": (BlockDevice("d", disk, queues=2),)}, InvalidConfig, "one queue"),
        ({"devices": (BlockDevice("d", disk.parent),)}, InvalidConfig, "no disk image"),
        ({"cmdline": "x" * 2048}, InvalidConfig, "over 2047 bytes"),
        (
            {"devices": tuple(BlockDevice(f"d{n}", disk) for n in range(17))},
            LimitExceeded,
            "19 devices.*17 MMIO devices",
        ),
    ]
    for change, kind, text in cases:
        with pytest.raises(kind, match=text):
            bodies_of(replace(spec, **change))


def test_a_packed_kernel_from_1_17_on(spec: VmSpec) -> None:
    packed = spec.runtime_dir / "bzImage"
    packed.write_bytes(b"MZ...")
    assert bodies_of(replace(spec, kernel=packed), "1.17.0")


def test_hot_memory_is_whole_slots(spec: VmSpec) -> None:
    grows = replace(spec, memory_bytes=256 * MIB, max_memory_bytes=400 * MIB)
    asked = bodies_of(grows)
    assert asked["/hotplug/memory"] == {
        "total_size_mib": 256,
        "slot_size_mib": 128,
        "block_size_mib": 2,
    }
    assert "memhp_default_state=online_movable" in asked["/boot-source"]["boot_args"]
    caps = capabilities(grows, plan_of(grows))
    assert (caps.mem_up, caps.mem_max) == (True, 512 * MIB)


def test_mmio_disks_are_known_by_their_names(spec: VmSpec, disk: Path) -> None:
    plan = plan_of(replace(spec, devices=(RngDevice(), BlockDevice("d", disk)), hotplug_slots=4))
    assert plan.placed["image"].handle.address == DeviceNode("/dev/vda")
    assert plan.placed["d"].handle.address == DeviceNode("/dev/vdb")
    assert [node for _, node in plan.pool.values()] == [f"/dev/vd{x}" for x in "cdef"]


def test_placeholders_are_used_again_and_run_out_honestly(spec: VmSpec, disk: Path) -> None:
    plan = plan_of(replace(spec, hotplug_slots=4))
    first = plan.add_to_pool(BlockDevice("a", disk))
    second = plan.add_to_pool(BlockDevice("b", disk))
    read_only = plan.add_to_pool(BlockDevice("c", disk, read_only=True))
    nodes = {str(placed.handle.address) for placed in (first, second, read_only)}
    assert len(nodes) == 3
    with pytest.raises(LimitExceeded, match=r"all 2 writable placeholder drives.*4 in all"):
        plan.add_to_pool(BlockDevice("d", disk))
    with pytest.raises(Conflict):
        plan.add_to_pool(BlockDevice("a", disk))
    plan.release(first)
    plan.release(first)
    again = plan.add_to_pool(BlockDevice("d", disk))
    assert again.handle.address == first.handle.address


def test_placeholders_take_only_what_other_devices_leave(spec: VmSpec) -> None:
    plan = plan_of(replace(spec, hotplug_slots=40))
    assert len(plan.pool) == 17 - 4  # image, rng, balloon, vsock


def test_pci_slots_are_those_firecracker_will_take(spec: VmSpec, disk: Path) -> None:
    devices = (RngDevice(), NetDevice("eth0", MAC, tap="t"), BalloonDevice())
    plan = plan_of(replace(spec, devices=devices), pci=True)
    slots = {key: placed.slot for key, placed in plan.placed.items()}
    assert slots == {"balloon": 1, "image": 2, "eth0": 3, "vsock": 4, "rng": 5}
    first = plan.add_pci(BlockDevice("d", disk))
    assert first.handle.address == PciPath(((6, 0),))
    second = plan.add_pci(NetDevice("eth1", MAC, tap="u"))
    assert second.slot == 7
    plan.release(first)
    assert plan.add_pci(PmemDevice("p", disk)).slot == 6
    for number in range(8, 32):
        assert plan.add_pci(BlockDevice(f"d{number}", disk)).slot == number
    with pytest.raises(LimitExceeded, match="31 PCI slots"):
        plan.add_pci(BlockDevice("more", disk))


def test_pci_without_its_hot_plug_keeps_placeholders(spec: VmSpec) -> None:
    net = NetDevice("eth0", MAC, tap="t")
    plan = plan_of(replace(spec, devices=(net,), hotplug_slots=3), "1.14.1", pci=True)
    assert plan.placed["image"].slot == 1
    assert len(plan.pool) == 3
    assert plan.placed["eth0"].slot == 5
    caps = plan.features.capabilities()
    assert caps.block_hot == "swap"
    with pytest.raises(Unsupported, match=r"net_hot.*1\.16 or later, started with PCI"):
        caps.require("net_hot")


def test_capabilities_follow_the_spec(spec: VmSpec) -> None:
    bare = replace(spec, devices=(VsockDevice(),), hotplug_slots=0, console=False)
    caps = capabilities(bare, plan_of(bare))
    assert (caps.block_hot, caps.balloon, caps.mem_up, caps.console) == (
        "none",
        False,
        False,
        False,
    )
    with pytest.raises(Unsupported, match=r"Firecracker 1\.16\.1.*balloon.*BalloonDevice"):
        caps.require("balloon")


@pytest.mark.parametrize(
    ("code", "console", "cause"),
    [
        (0, [], ExitCause.GUEST_RESET),
        (0, ["Kernel panic - not syncing: x"], ExitCause.GUEST_PANIC),
        (148, [], ExitCause.VMM_ERROR),
        (-9, [], ExitCause.HOST_SIGNAL),
        (None, [], ExitCause.UNKNOWN),
    ],
)
def test_exit_reasons(code: int | None, console: list[str], cause: ExitCause) -> None:
    reason = exit_reason(code, ["last words"], console)
    assert reason.cause is cause
    assert "last words" in str(reason)


def test_ids_are_what_firecracker_takes() -> None:
    assert vm_id("katapy-1") == "katapy-1"
    odd, long = vm_id("a_b.c"), vm_id("x" * 100)
    assert vm_id("a.b_c") != odd
    for name in (odd, long, vm_id("")):
        assert 1 <= len(name) <= 64
        assert all(char.isalnum() or char == "-" for char in name)


def test_metrics_add_up() -> None:
    counters = Counters()
    assert counters.feed(b'{"net_net1":{"tx_bytes_count":5},"api_server":{"x":1}}\n{"net_') == 1
    assert counters.feed(b'net1":{"tx_bytes_count":2,"lat":{"min_us":1}}}\nbroken\n') == 1
    assert counters.totals == {"net_net1": {"tx_bytes_count": 7}}
