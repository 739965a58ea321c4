"""What configuration keys do to a real pod."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ctr import Ctr
from tests.support.runtime_processes import helpers, vmm_of
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

Configured = Callable[[str], tuple[str, str]]


def test_a_container_over_the_vsock_channel(
    ctr: Ctr, configured: Configured, vhost_device_vsock: Path
) -> None:
    sections = f'[katapy]\nchannel = "vsock"\nvhost_device_vsock = "{vhost_device_vsock}"'
    name = ctr.start("sleep", "1000", options=configured(sections))
    assert "vsock" in vmm_of(ctr, name).command
    assert ctr.exec(name, "echo", "over vsock").text == "over vsock"
    assert ctr.exec(name, "cat", stdin=b"x" * 100_000).stdout == b"x" * 100_000
    assert "katapy.channel=vsock" in ctr.exec(name, "cat", "/proc/cmdline").text


def test_the_vsock_channel_without_a_vsock(ctr: Ctr, configured: Configured) -> None:
    if Path("/dev/vhost-vsock").exists():
        pytest.skip("this host's kernel has vsock")
    sections = '[katapy]\nchannel = "vsock"\nvhost_device_vsock = "/no/such/daemon"'
    output = ctr.run("true", options=configured(sections))
    assert output.code != 0
    assert "/no/such/daemon" in output.error


def test_the_console_in_the_log(ctr: Ctr, configured: Configured) -> None:
    mark = f"katapy.mark={ctr.new_id()}"
    sections = (
        f'[hypervisor.qemu]\nenable_debug = true\nkernel_params = "ignore_loglevel {mark}"\n'
        "[runtime]\nenable_debug = true\n[agent.kata]\nenable_debug = true"
    )
    assert ctr.run("true", options=configured(sections)).code == 0

    def logged() -> bool:
        lines = ctr.daemon.log.read_text(errors="replace").splitlines()
        return any("source=console" in line and mark in line for line in lines)

    eventually(logged, "the guest's command line in containerd's log", timeout=10)


def test_kata_s_arguments_for_virtiofsd(ctr: Ctr, configured: Configured) -> None:
    sections = (
        '[hypervisor.qemu]\nshared_fs = "virtio-fs"\n'
        'virtio_fs_extra_args = ["--thread-pool-size=1", "--announce-submounts"]'
    )
    name = ctr.start("sleep", "1000", options=configured(sections))
    assert "--thread-pool-size=1" in helpers("virtiofsd")[0].command
    assert ctr.exec(name, "ls", "/").code == 0


def test_ports_beyond_those_that_are_always_there(ctr: Ctr, configured: Configured) -> None:
    name = ctr.start("sleep", "1000", options=configured("[hypervisor.qemu]\npcie_root_port = 3"))
    command = vmm_of(ctr, name).command
    assert (command.count("pcie-root-port"), command.count("pci-bridge")) == (3, 1)


@pytest.mark.parametrize("direct", [True, False])
def test_how_disks_are_read_and_written(
    ctr: Ctr, configured: Configured, image: Path, series: str, direct: bool
) -> None:
    if series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    local = ["--local"] if series.startswith("2.") else []
    ctr.ok("images", "import", *local, "--snapshotter", "blockfile", image)
    sections = f"""
[hypervisor.qemu]
block_device_cache_direct = {str(direct).lower()}
block_device_aio = "{"native" if direct else "io_uring"}"
block_device_physical_sector_size = 4096
queue_size = 32
"""
    options = ["--snapshotter", "blockfile", *configured(sections)]
    name = ctr.start("sleep", "1000", options=options)
    assert direct == any("blockfile" in path for path in _opened_directly(vmm_of(ctr, name).pid))
    script = """
set -- $(grep ' / ' /proc/mounts)
cd /sys/block/${1##*/}/queue
cat physical_block_size nr_requests"""
    sector, requests = ctr.exec(name, "sh", "-c", script).text.split()
    assert sector == "4096"
    assert int(requests) in (32, 64)  # an I/O scheduler has room for twice as many


def _opened_directly(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
        if int(info.split("flags:")[1].split()[0], 8) & os.O_DIRECT:
            yield os.readlink(entry)


def _annotation(key: str, value: str) -> tuple[str, str]:
    return "--annotation", f"io.katacontainers.config.hypervisor.{key}={value}"


@pytest.mark.core
def test_annotations_of_the_pod(ctr: Ctr) -> None:
    mark = f"katapy.mark={ctr.new_id()}"
    options = [*_annotation("kernel_params", mark), *_annotation("default_memory", "300")]
    output = ctr.run("sh", "-c", "cat /proc/cmdline; grep MemTotal /proc/meminfo", options=options)
    assert output.code == 0, output.error
    line, memory = output.text.splitlines()
    assert mark in line.split()
    assert 240 << 10 < int(memory.split()[1]) < 300 << 10


def test_annotation_that_is_not_enabled(ctr: Ctr) -> None:
    output = ctr.run("true", options=_annotation("machine_type", "microvm"))
    assert output.code != 0
    assert "hypervisor.machine_type is not enabled" in output.error


def test_scsi_disks_without_root(
    ctr: Ctr, configured: Configured, image: Path, series: str
) -> None:
    if series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    local = ["--local"] if series.startswith("2.") else []
    ctr.ok("images", "import", *local, "--snapshotter", "blockfile", image)
    sections = (
        '[hypervisor.qemu]\nblock_device_driver = "virtio-scsi"\nrootless = true\n'
        "enable_iommu = true\ndisk_rate_limiter_bw_max_rate = 800000000"
    )
    options = ["--snapshotter", "blockfile", *configured(sections)]
    name = ctr.start("sleep", "1000", options=options)
    output = ctr.exec(name, "sh", "-c", "grep ' / ' /proc/mounts; echo data >/file && cat /file")
    assert output.code == 0, output.error
    mount, text = output.text.splitlines()
    assert mount.startswith("/dev/sd")
    assert text == "data"
    uid = re.search(r"^Uid:\t(\d+)", Path(f"/proc/{ctr.pid(name)}/status").read_text(), re.M)
    assert uid is not None
    assert int(uid[1]) >= 0x70000000


@pytest.mark.parametrize(
    ("driver", "device"), [("virtio-pmem", "virtio-pmem-pci"), ("nvdimm",) * 2]
)
def test_the_guest_image_as_persistent_memory(
    ctr: Ctr, configured: Configured, driver: str, device: str
) -> None:
    sections = f'[hypervisor.qemu]\nvm_rootfs_driver = "{driver}"'
    name = ctr.start("sleep", "1000", options=configured(sections))
    command = vmm_of(ctr, name).command
    assert f'"driver":"{device}"' in command
    assert '"readonly":true' in command
    assert "root=/dev/pmem0" in ctr.exec(name, "cat", "/proc/cmdline").text.split()
    assert ctr.exec(name, "ls", "/sys/block").text.split() == ["pmem0"]


def test_numa_nodes_of_the_guest(ctr: Ctr, configured: Configured) -> None:
    sections = (
        '[hypervisor.qemu]\nenable_numa = true\nnuma_mapping = ["0", "0"]\n'
        "default_vcpus = 2\ndefault_maxvcpus = 2"
    )
    name = ctr.start("sleep", "1000", options=configured(sections))
    assert ctr.exec(name, "cat", "/sys/devices/system/node/online").text == "0-1"
    assert ctr.exec(name, "cat", "/sys/devices/system/node/node1/cpulist").text == "1"


def test_a_numa_node_that_the_host_has_not(ctr: Ctr, configured: Configured) -> None:
    sections = '[hypervisor.qemu]\nenable_numa = true\nnuma_mapping = ["77"]'
    output = ctr.run("true", options=configured(sections))
    assert output.code != 0
    assert "this host has no NUMA node 77" in output.error


def test_a_device_of_the_host_that_nothing_allows(ctr: Ctr, configured: Configured) -> None:
    device = Path("/dev/vfio/4096")  # a group's number, but no such group
    device.parent.mkdir(exist_ok=True)
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(511, 9))
    except PermissionError:
        pytest.skip("no device nodes can be made here")
    try:
        refused = ctr.run("true", options=("--device", str(device), *configured("")))
        assert refused.code != 0
        assert "there is no VFIO group" in refused.error
    finally:
        device.unlink()
        if not any(device.parent.iterdir()):
            device.parent.rmdir()
