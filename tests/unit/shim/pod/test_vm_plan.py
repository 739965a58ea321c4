"""From configuration to VM, for each hypervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.backends import load_backends
from shim.config.hypervisors import AnyHypervisor, CloudHypervisor, Firecracker, Qemu
from shim.config.model import Config, Katapy
from shim.errors import ConfigError
from shim.pod.vm_plan import VmPlan, choose_shared_fs, needs_vsock, plan_vm
from vmm.cmdline import merge
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import FsDevice, NinePDevice, PanicDevice, PmemDevice, VmSpec, VsockDevice

FILES: dict[str, Any] = {"kernel": Path("/k"), "image": Path("/i")}


def plan(hypervisor: AnyHypervisor, **katapy: Any) -> VmPlan:
    config = Config(hypervisor=hypervisor, katapy=Katapy(**katapy))
    return plan_vm(config, name="n", runtime_dir=Path("/r"), netns=None)


def device(spec: VmSpec, kind: type) -> Any:
    return next((d for d in spec.devices if isinstance(d, kind)), None)


def test_qemu() -> None:
    made = plan(Qemu(**FILES, default_vcpus=2.5, default_memory=300))
    assert (made.spec.machine, made.spec.channel) == ("q35", "serial")
    assert (made.spec.vcpus, made.spec.memory_bytes) == (3, 300 << 20)
    assert made.shared_fs == "virtio-fs"
    assert device(made.spec, FsDevice).socket == made.virtiofsd_socket
    assert "katapy.channel=serial" in made.spec.cmdline.split()
    assert plan(Qemu(**FILES, machine_type="microvm")).spec.max_vcpus == 0


@pytest.mark.parametrize("debug", [False, True])
def test_the_kernel_says_all_it_has_only_to_who_debugs(debug: bool) -> None:
    words = plan(Qemu(**FILES, enable_debug=debug)).spec.cmdline.split()
    assert ("loglevel=5" in words) is not debug


def test_how_far_a_vm_can_grow() -> None:
    spec = plan(Qemu(**FILES, default_memory=512, default_maxmemory=1024, pcie_root_port=2)).spec
    assert (spec.memory_limit, spec.memory_hotplug) == (1 << 30, "virtio-mem")
    assert (spec.hotplug_slots, spec.root_ports) == (30, 2)
    dimms = plan(Qemu(**FILES, enable_virtio_mem=False)).spec
    assert (dimms.memory_hotplug, dimms.root_ports) == ("dimm", 0)
    assert dimms.memory_limit > 2048 << 20
    assert plan(Qemu(**FILES, machine_type="microvm")).spec.max_memory_bytes == 0


@pytest.mark.parametrize("driver", ["virtio-pmem", "nvdimm"])
def test_the_image_as_persistent_memory(driver: str) -> None:
    spec = plan(Qemu(**FILES, vm_rootfs_driver=driver)).spec
    assert spec.image == PmemDevice("image", Path("/i"), read_only=True, nvdimm=driver == "nvdimm")
    assert ("rootflags=dax=always" in spec.cmdline.split()) is (driver == "virtio-pmem")
    assert "root=/dev/pmem0" in merge(spec, {}).split()


def test_ports_for_devices_of_the_host() -> None:
    assert plan(Qemu(**FILES, hot_plug_vfio="root-port")).spec.root_ports == 4
    assert plan(Qemu(**FILES, hot_plug_vfio="root-port", pcie_root_port=1)).spec.root_ports == 1
    assert plan(Qemu(**FILES, hot_plug_vfio="bridge-port")).spec.root_ports == 0
    assert plan(Qemu(**FILES, cold_plug_vfio="root-port")).cold_ports
    assert not plan(Qemu(**FILES, cold_plug_vfio="bridge-port")).cold_ports


def test_numa_nodes_of_the_guest() -> None:
    spec = plan(
        Qemu(
            **FILES, enable_numa=True, numa_mapping=("0", "0"), default_vcpus=2, default_memory=512
        )
    ).spec
    assert [node.host_nodes for node in spec.numa] == [(0,), (0,)]
    assert sum(node.vcpus for node in spec.numa) == spec.vcpu_limit
    assert plan(Qemu(**FILES, numa_mapping=("0",))).spec.numa == ()


def test_vsock_of_qemu_is_the_host_s() -> None:
    device_ = VsockDevice(cid=7, fd=9)
    config = Config(hypervisor=Qemu(**FILES), katapy=Katapy(channel="vsock"))
    assert needs_vsock(config)
    made = plan_vm(config, name="n", runtime_dir=Path("/r"), netns=None, vsock=device_)
    assert device(made.spec, VsockDevice) is device_
    assert made.spec.channel == "vsock"
    assert not needs_vsock(Config(hypervisor=Firecracker(**FILES)))


def test_qemu_with_9p() -> None:
    made = plan(Qemu(**FILES, shared_fs="virtio-9p", msize_9p=4096))
    assert device(made.spec, NinePDevice).path == made.share_dir
    assert made.msize == 4096


def test_9p_is_chosen_where_it_is_whole() -> None:
    chosen = [
        choose_shared_fs(Config(hypervisor=vm), has_9p=True, whole_9p=whole)
        for vm in (Qemu(), Qemu(shared_fs="virtio-9p"))
        for whole in (True, False)
    ]
    assert chosen == ["virtio-9p", "virtio-fs", "virtio-9p", "virtio-9p"]


def test_a_guest_with_the_other_byte_order_has_9p() -> None:
    made = plan(Qemu(**FILES), guest_arch="s390x")
    assert (made.spec.machine, made.shared_fs) == ("s390-ccw-virtio", "virtio-9p")
    assert device(made.spec, PanicDevice) is None
    for refused in ({"shared_fs": "virtio-fs"}, {"rootless": True}):
        with pytest.raises(ConfigError, match="s390x guest has the other byte order"):
            plan(Qemu(**FILES, **refused), guest_arch="s390x")


def test_firecracker_shares_nothing_and_talks_over_its_own_vsock() -> None:
    made = plan(Firecracker(**FILES, disable_seccomp=True, default_maxvcpus=8))
    assert made.shared_fs == "none"
    assert made.spec.channel == "vsock"
    assert device(made.spec, VsockDevice).uds == Path("/r/vsock.sock")
    assert device(made.spec, PanicDevice) is None
    assert made.spec.max_vcpus == 0
    assert not made.spec.sandbox_seccomp
    assert "katapy.channel=vsock" in made.spec.cmdline.split()


def test_cloud_hypervisor_has_virtio_fs_and_its_own_vsock() -> None:
    made = plan(CloudHypervisor(**FILES, default_maxvcpus=8))
    assert made.shared_fs == "virtio-fs"
    assert device(made.spec, FsDevice) is not None
    assert device(made.spec, VsockDevice).uds == Path("/r/vsock.sock")
    assert made.spec.max_vcpus == 8
    assert plan(CloudHypervisor(**FILES, shared_fs="none")).shared_fs == "none"


@pytest.mark.parametrize("hypervisor", [Firecracker(**FILES), CloudHypervisor(**FILES)])
def test_no_other_than_qemu_has_a_serial_channel(hypervisor: AnyHypervisor) -> None:
    with pytest.raises(ConfigError, match=f"{hypervisor.section}.*only vsock"):
        plan(hypervisor, channel="serial")


def test_the_configured_backend_is_made(tmp_path: Path) -> None:
    config = Config(hypervisor=Qemu(path=Path("/q"), **FILES))
    spec = VmSpec(kernel=Path("/k"), runtime_dir=tmp_path)
    made = load_backends(config).hypervisor(spec, config, lambda kind, value: None)
    assert isinstance(made, QemuHypervisor)
    assert made.spec is spec


def test_a_backend_that_is_not_there_is_an_error_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"clh": ("vmm.not_there.backend", "Backend")}
    monkeypatch.setattr("shim.backends._BACKENDS", missing)
    with pytest.raises(ConfigError, match=r"\[hypervisor.clh\].*vmm.not_there.backend is missing"):
        load_backends(Config(hypervisor=CloudHypervisor()))
