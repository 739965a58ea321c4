"""Cloud Hypervisor: what each version is told, what is refused, and its event stream."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cloud_hypervisor.cloud_hypervisor import exit_reason
from vmm.cloud_hypervisor.event_codec import EventDecoder, VmmEvent
from vmm.cloud_hypervisor.features import Features
from vmm.cloud_hypervisor.launch import capabilities
from vmm.cloud_hypervisor.plan import Landlock, addresses, make_plan, pci_path, vm_config
from vmm.errors import Conflict, InvalidConfig, LimitExceeded, Unsupported
from vmm.events import ExitCause
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
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
)
from vmm.version import Version

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
        image=BlockDevice("image", image, read_only=True, shared=True),
        channel="vsock",
        devices=(RngDevice(), BalloonDevice(), PanicDevice()),
    )


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * MIB))
    return path


def features(major: int = 53) -> Features:
    return Features(Version(major, 0))


def config_of(spec: VmSpec, major: int = 53, landlock: Landlock | None = None) -> dict[str, Any]:
    plan = make_plan(spec, features(major))
    return vm_config(plan, vsock=Path("/v"), console=Path("/c"), landlock=landlock)


def test_a_plain_vm(spec: VmSpec) -> None:
    config = config_of(replace(spec, vcpus=2, max_vcpus=4, memory_bytes=512 * MIB))
    assert config["cpus"] == {"boot_vcpus": 2, "max_vcpus": 4}
    assert config["memory"] == {"size": 512 * MIB, "shared": False}
    assert config["serial"] == {"mode": "File", "file": "/c"}
    assert config["console"] == {"mode": "Off"}
    assert config["vsock"] == {"cid": 3, "socket": "/v"}
    assert config["rng"] == {"src": "/dev/urandom"}
    assert config["pvpanic"] is True
    assert config["balloon"]["free_page_reporting"] is True
    (disk,) = config["disks"]
    assert disk["readonly"] is True
    assert disk["image_type"] == "Raw"
    assert "landlock_enable" not in config


def test_keys_a_version_would_ignore_are_not_sent(spec: VmSpec) -> None:
    (disk,) = config_of(spec, 46)["disks"]
    assert set(disk) == {"id", "path", "readonly"}
    caps = features(46).capabilities()
    with pytest.raises(Unsupported, match=r"Cloud Hypervisor 46\.0.*block_resize.*50 or later"):
        caps.require("block_resize")


def test_memory(spec: VmSpec, tmp_path: Path) -> None:
    fs = FsDevice("fs", "tag", tmp_path / "s")
    grows = replace(spec, max_memory_bytes=300 * MIB, hugepages=True, devices=(fs,))
    memory = config_of(grows)["memory"]
    assert memory == {
        "size": 256 * MIB,
        "shared": True,
        "hotplug_size": 128 * MIB,
        "hotplug_method": "VirtioMem",
        "hugepages": True,
        "hugepage_size": 2 * MIB,
    }
    dimms = replace(grows, memory_hotplug="dimm")
    assert config_of(dimms)["memory"]["hotplug_method"] == "Acpi"
    caps = capabilities(dimms, make_plan(dimms, features()), landlock=False)
    assert (caps.mem_up, caps.mem_down, caps.mem_granule) == (True, False, 128 * MIB)


def test_devices(spec: VmSpec, disk: Path) -> None:
    limit = RateLimit(bytes_per_second=9, bytes_burst=4)
    config = config_of(
        replace(
            spec,
            vcpus=2,
            devices=(
                BlockDevice(
                    "d",
                    disk,
                    direct=True,
                    serial="s",
                    discard=False,
                    limit=limit,
                    queues=2,
                    queue_size=64,
                ),
                NetDevice("eth0", MAC, tap="tap0", mtu=1400, rx_limit=limit, tx_limit=limit),
                NetDevice("eth1", MAC, fds=(7, 8)),
                PmemDevice("p", disk, read_only=True),
                VfioDevice("gpu", "0000:01:00.0"),
            ),
        )
    )
    limiter = {"bandwidth": {"size": 9, "refill_time": 1000, "one_time_burst": 4}}
    assert config["disks"][1] == {
        "id": "block2",
        "path": str(disk),
        "readonly": False,
        "direct": True,
        "serial": "s",
        "num_queues": 2,
        "queue_size": 64,
        "image_type": "Raw",
        "sparse": False,
        "rate_limiter_config": limiter,
    }
    # The card on descriptors is added afterwards, with them.
    assert config["net"] == [
        {"id": "net3", "mac": MAC, "tap": "tap0", "mtu": 1400, "rate_limiter_config": limiter}
    ]
    assert config["pmem"] == [{"id": "pmem5", "file": str(disk), "discard_writes": True}]
    assert config["devices"] == [{"id": "vfio6", "path": "/sys/bus/pci/devices/0000:01:00.0"}]


def test_landlock(spec: VmSpec, disk: Path) -> None:
    landlock = Landlock(((disk.parent, "rw"),))
    config = config_of(spec, landlock=landlock)
    assert config["landlock_enable"] is True
    assert config["landlock_rules"] == [{"path": str(disk.parent), "access": "rw"}]
    assert landlock.covers(disk)
    assert not landlock.covers(Path("/etc/passwd"))


def test_bad_specs(spec: VmSpec, disk: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"x")
    limit = RateLimit(ops_per_second=1)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"kernel": tmp_path / "none"}, InvalidConfig, "kernel: no file"),
        ({"vcpus": 0}, InvalidConfig, "1 to 254 virtual CPUs"),
        ({"memory_bytes": 1}, InvalidConfig, "whole MiB"),
        ({"channel": "serial"}, Unsupported, r"Cloud Hypervisor 53\.0.*serial_agent.*vsock"),
        ({"accel": "tcg"}, InvalidConfig, "needs KVM"),
        ({"devices": (NinePDevice("n", "t", tmp_path),)}, Unsupported, "ninep.*virtio-fs"),
        ({"devices": (SerialDevice("s", "p"),)}, Unsupported, "serial_agent"),
        ({"devices": (RngDevice("a"), RngDevice("b"))}, InvalidConfig, "one RngDevice"),
        ({"devices": (RngDevice("image"),)}, Conflict, "image"),
        (
            {"devices": (FsDevice("f", "t", odd),), "shared_memory": False},
            InvalidConfig,
            "shared_memory",
        ),
        ({"devices": (PmemDevice("p", odd),)}, InvalidConfig, "2 MiB"),
        ({"devices": (PmemDevice("p", disk, limit=limit),)}, Unsupported, "rate_limit"),
        ({"devices": (BlockDevice("d", odd, shared=True),)}, InvalidConfig, "locks"),
        ({"devices": (BlockDevice("d", odd, aio="io_uring"),)}, InvalidConfig, "itself"),
        ({"devices": (BlockDevice("d", odd, flush=False),)}, InvalidConfig, "flush"),
        ({"devices": (BlockDevice("d", odd, logical_sector=4096),)}, InvalidConfig, "sectors"),
        ({"devices": (BlockDevice("d", odd, serial="x" * 21),)}, InvalidConfig, "20 bytes"),
        ({"devices": (NetDevice("n", MAC),)}, InvalidConfig, "tap name or open"),
        ({"devices": (NetDevice("n", MAC, fds=(3, 4)),)}, InvalidConfig, "2 queues, but 1"),
        (
            {"devices": (NetDevice("n", MAC, tap="t", rx_limit=limit),)},
            InvalidConfig,
            "both directions",
        ),
        (
            {"devices": tuple(BlockDevice(f"d{n}", odd) for n in range(31))},
            LimitExceeded,
            "31 PCI slots",
        ),
    ]
    for change, kind, text in cases:
        with pytest.raises(kind, match=text):
            config_of(replace(spec, **change))
    with pytest.raises(InvalidConfig, match=r"45\.0: version 46 or later"):
        config_of(spec, 45)


def test_addresses_are_those_of_the_transport() -> None:
    tree = {
        "_virtio-pci-block1": {"pci_bdf": "0000:00:05.0", "children": ["block1"]},
        "block1": {"children": []},
        "_virtio-pci-block2": {"pci_bdf": "0001:00:01.0", "children": ["block2"]},
    }
    found = addresses({"device_tree": tree})
    assert pci_path(found["block1"]) == PciPath(((5, 0),))
    assert pci_path(found["block2"]) is None  # another segment
    assert addresses({}) == {}
    assert pci_path("") is None


def event_text(name: str, **properties: str) -> bytes:
    value = {
        "timestamp": {"secs": 0, "nanos": 1},
        "source": "vm",
        "event": name,
        "properties": properties or None,
    }
    return json.dumps(value, indent=2).encode() + b"\n\n"


def test_events() -> None:
    decoder = EventDecoder()
    assert decoder.feed(event_text("booted") + event_text("device-removed", id="d")) == [
        VmmEvent("vm", "booted", {}),
        VmmEvent("vm", "device-removed", {"id": "d"}),
    ]


@given(st.lists(st.integers(1, 80), max_size=20))
def test_where_events_are_cut_does_not_matter(cuts: list[int]) -> None:
    data = event_text("booted") + event_text("paused") + event_text("device-removed", id="x")
    decoder = EventDecoder()
    names = []
    for size in [*cuts, len(data)]:
        piece, data = data[:size], data[size:]
        names += [event.name for event in decoder.feed(piece)]
    assert names == ["booted", "paused", "device-removed"]


@given(st.integers(1, 120))
def test_an_event_that_was_cut_off_costs_no_other(lost: int) -> None:
    broken = event_text("rebooting")[:-lost]
    decoder = EventDecoder()
    events = decoder.feed(b"noise\n\n" + broken + event_text("paused") + event_text("booted"))
    assert [event.name for event in events][-1] == "booted"
    if broken.endswith(b"\n"):
        assert "paused" in [event.name for event in events]


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_noise_never_breaks_the_decoder(pieces: list[bytes]) -> None:
    decoder = EventDecoder()
    for piece in pieces:
        decoder.feed(piece)
    decoder.feed(b"\n\n")
    assert [event.name for event in decoder.feed(event_text("booted"))] == ["booted"]


@pytest.mark.parametrize(
    ("code", "seen", "console", "cause"),
    [
        (0, None, [], ExitCause.HOST_QUIT),
        (0, ExitCause.GUEST_SHUTDOWN, [], ExitCause.GUEST_SHUTDOWN),
        (-9, ExitCause.GUEST_RESET, [], ExitCause.GUEST_RESET),
        (-9, ExitCause.GUEST_RESET, ["Kernel panic - not syncing"], ExitCause.GUEST_PANIC),
        (-9, None, [], ExitCause.HOST_SIGNAL),
        (1, None, [], ExitCause.VMM_ERROR),
        (None, None, [], ExitCause.UNKNOWN),
    ],
)
def test_exit_reasons(
    code: int | None, seen: ExitCause | None, console: list[str], cause: ExitCause
) -> None:
    assert exit_reason(code, seen, [], console).cause is cause
