"""Every flag of the capability value, for every backend and version: claimed and there, or not.

Some flags stand for a method of a running VM: ``integration/vmm/test_capabilities.py`` walks
those. Some stand for what a specification may ask for, which is planned here: a plan that is
made claims the flag, one that is refused does not. The rest says what a VM is like; each names
the test that sees it.
"""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.unit.vmm.command_line import KVM, TCG, Line
from tests.unit.vmm.command_line import features as qemu_features
from vmm.cloud_hypervisor import launch as clh
from vmm.cloud_hypervisor import plan as clh_plan
from vmm.cloud_hypervisor.features import Features as ClhFeatures
from vmm.errors import InvalidConfig, Unsupported
from vmm.firecracker import launch as firecracker
from vmm.firecracker import plan as firecracker_plan
from vmm.firecracker.features import Features as FirecrackerFeatures
from vmm.hypervisor import Capabilities
from vmm.qemu.capabilities import capabilities as qemu_capabilities
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    FsDevice,
    NetDevice,
    NinePDevice,
    PanicDevice,
    PmemDevice,
    RateLimit,
    VfioDevice,
    VmSpec,
    VsockDevice,
)
from vmm.version import parse_version

ROOT = Path(__file__).parents[3]
MAC = "02:00:00:00:00:01"

VMMS = [
    *("qemu 7.2 q35", "qemu 10.0 q35", "qemu 11.1 q35", "qemu 7.2 microvm"),
    *("firecracker 1.12.1", "firecracker 1.13.1", "firecracker 1.14.1", "firecracker 1.16.1"),
    *("firecracker 1.16.1 pci", "firecracker 1.17.0 pci", "clh 46.0", "clh 51.1", "clh 53.0"),
]

METHODS = {
    *("block_hot", "block_resize", "net_hot", "fs_hot", "pmem_hot", "vfio_hot", "vcpu_up"),
    *("vcpu_down", "mem_up", "mem_down", "balloon", "pause", "snapshot", "rate_limit", "counters"),
}
"""Those that ``integration/vmm/test_capabilities.py`` calls."""

_CLH = "integration/vmm/test_cloud_hypervisor.py"
SEEN_BY = {
    "transport": "integration/vmm/test_capabilities.py::test_walk",
    "max_vcpus": "unit/vmm/test_firecracker.py::test_bad_specs",
    "max_devices": "unit/vmm/test_command.py::test_cold_slots_run_out",
    "mem_granule": "integration/vmm/test_firecracker.py::test_memory_grows_and_shrinks",
    "mem_max": "unit/vmm/test_cloud_hypervisor.py::test_memory",
    "restore_overrides": "integration/vmm/test_snapshot_standins.py::test_a_loaded_guest_goes_on",
    "guest_rescan_needed": "integration/vmm/test_firecracker.py::test_pci_hot_plug",
    "guest_remove_first": "integration/vmm/test_firecracker.py::test_pci_hot_plug",
    "event_stream": f"{_CLH}::test_hot_plug",
    "reset_semantics": f"{_CLH}::test_a_guest_that_resets_ends_the_vm",
    "acpi_shutdown": f"{_CLH}::test_an_orderly_shutdown",
    "jail": "integration/vmm/test_firecracker.py::test_in_a_jail",
    "console": "integration/vmm/test_boot.py::test_a_guest_without_init_fails_with_the_console",
}

SOFT = {"free_page_reporting"}
"""Taken where the version has it, and done without elsewhere: it is on by default."""

NOBODY_S = {"lazy_restore", "live_migration", "firmware"}
"""What no backend does: the interface has nothing to ask for it with."""


def ask(spec: VmSpec, disk: Path) -> dict[str, VmSpec]:
    """A specification for each flag that one can ask for."""

    def having(*devices: object, **changes: object) -> VmSpec:
        return replace(spec, devices=(*spec.devices, *devices), **changes)  # type: ignore[arg-type]

    socket = spec.runtime_dir / "s"
    vhost = () if spec.channel == "vsock" else (VsockDevice(cid=3, vhost_user=socket, uds=socket),)
    return {
        "fs_share": having(FsDevice("fs", "tag", socket)),
        "ninep": having(NinePDevice("n", "tag", spec.runtime_dir)),
        "pmem_cold": having(PmemDevice("p", disk)),
        "vfio_cold": having(VfioDevice("v", "0000:01:00.0")),
        "block_serial": having(BlockDevice("d", disk, serial="serial")),
        "nic_by_fd": having(NetDevice("net", MAC, fds=(7,))),
        "multi_queue": having(NetDevice("net", MAC, fds=(7, 8)), vcpus=2),
        "free_page_reporting": having(BalloonDevice("b", free_page_reporting=True)),
        "guest_panic_event": having(PanicDevice("panic")),
        "serial_agent": having(channel="serial"),
        "vsock": having(*vhost, channel="vsock"),
        "initrd": having(initrd=disk),
        "hugepages": having(hugepages=True),
        "rootless": having(user=(1000, 1000)),
        "seccomp": having(sandbox_seccomp=True),
        # Those that a method changes later.
        "balloon": having(BalloonDevice("b")),
        "vcpu_up": having(max_vcpus=2),
        "mem_up": having(max_memory_bytes=512 * MIB),
        "rate_limit": having(BlockDevice("d", disk, limit=RateLimit(bytes_per_second=9))),
    }


def plan(what: str, spec: VmSpec) -> Capabilities:
    """Plan a VM down to what its VMM is told; what it can do then."""
    vmm, text, *rest = what.split()
    version = parse_version(text)
    assert version is not None
    if vmm == "qemu":
        recorded = qemu_features(text)
        # Debian's QEMUs have these too, which the recordings were not asked for.
        have = replace(recorded, devices=(*recorded.devices, "virtio-pmem-pci", "vfio-pci"))
        Line(spec, qemu=have)
        return qemu_capabilities(spec, have, TCG if text == "7.2" else KVM)
    if vmm == "firecracker":
        features = FirecrackerFeatures(version, "pci" in rest)
        made = firecracker_plan.make_plan(spec, features)
        firecracker_plan.boot_requests(spec, made, firecracker_plan.Inside("/v", "/c", "/m", "/p"))
        return firecracker.capabilities(spec, made)
    planned = clh_plan.make_plan(spec, ClhFeatures(version))
    clh_plan.vm_config(planned, vsock=Path("/v"), console=Path("/c"), landlock=None)
    return clh.capabilities(spec, planned, landlock=False)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * MIB))
    return path


def bare(what: str, directory: Path) -> VmSpec:
    kernel = directory / "vmlinux"
    kernel.write_bytes(b"\x7fELF rest")
    spec = VmSpec(kernel=kernel, runtime_dir=directory, sandbox_seccomp=False)
    if not what.startswith("qemu"):
        return replace(spec, channel="vsock")
    machine = what.split()[2]
    return replace(spec, machine=machine, hotplug_slots=4 if machine == "q35" else 0)


@pytest.mark.parametrize("what", VMMS)
def test_what_is_planned_is_claimed_and_what_is_refused_is_not(
    what: str, tmp_path: Path, disk: Path
) -> None:
    spec = bare(what, tmp_path)
    base = plan(what, spec)
    wrong = []
    assert base.vmm
    for flag, asking in ask(spec, disk).items():
        try:
            claimed = plan(what, asking).has(flag)
        except (Unsupported, InvalidConfig) as error:
            if base.has(flag):
                wrong.append(f"{flag} is claimed and refused: {error}")
            if base.vmm.split()[0].lower() not in str(error).lower():
                wrong.append(f"{flag}: the error names no VMM: {error}")
            if not base.why_not.get(flag):
                wrong.append(f"{flag}: nothing says why not")
        else:
            if not claimed and flag not in SOFT:
                wrong.append(f"{flag} is planned and not claimed")
    assert wrong == []


@pytest.mark.parametrize("what", VMMS)
def test_what_is_off_says_why(what: str, tmp_path: Path) -> None:
    base = plan(what, bare(what, tmp_path))
    facts = {"mem_granule", "mem_max", "vmm", "why_not"}
    off = {f.name for f in fields(Capabilities) if f.name not in facts and not base.has(f.name)}
    assert {name for name in off if not base.why_not.get(name)} == set()
    assert off >= NOBODY_S


def test_every_flag_is_walked_planned_or_seen(tmp_path: Path, disk: Path) -> None:
    planned = set(ask(bare("clh 53.0", tmp_path), disk))
    known = METHODS | planned | set(SEEN_BY) | NOBODY_S | {"vmm", "why_not"}
    assert known == {field.name for field in fields(Capabilities)}
    assert not (METHODS | planned) & set(SEEN_BY)


def test_the_tests_named_are_there() -> None:
    for place in SEEN_BY.values():
        path, _, name = place.partition("::")
        tree = ast.parse((ROOT / "tests" / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in tree.body if isinstance(node, functions)}, place
