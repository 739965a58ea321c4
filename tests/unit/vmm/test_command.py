"""QEMU's command line, option by option."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.unit.vmm.command_line import KVM, TCG, Line, features
from vmm.errors import Conflict, InvalidConfig, LimitExceeded, Unsupported
from vmm.qemu import command
from vmm.qemu.capabilities import capabilities
from vmm.qemu.kernel_line import kernel_cmdline
from vmm.qemu.places import MAX_PORTS
from vmm.qemu.plan import make_plan
from vmm.spec import (
    MIB,
    BalloonDevice,
    BlockDevice,
    CcwAddress,
    Device,
    FsDevice,
    MmioIndex,
    NetDevice,
    NinePDevice,
    PanicDevice,
    PciPath,
    PmemDevice,
    RngDevice,
    SerialDevice,
    VfioDevice,
    VmSpec,
    VsockDevice,
)


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"kernel")
    return VmSpec(kernel=kernel, runtime_dir=tmp_path, hotplug_slots=2)


@pytest.fixture
def disk(tmp_path: Path) -> BlockDevice:
    path = tmp_path / "a,disk.img"
    path.write_bytes(bytes(512))
    return BlockDevice("disk", path)


def with_device(spec: VmSpec, *devices: Device) -> VmSpec:
    return replace(spec, devices=devices)


def test_basics(spec: VmSpec) -> None:
    line = Line(replace(spec, name="a,b"))
    assert line.argv[0] == "/usr/bin/qemu"
    assert line.value("-name") == "guest=a,,b,debug-threads=on"
    for flag in ("-nodefaults", "-no-user-config", "-no-reboot", "-S"):
        assert flag in line.argv
    assert line.value("-kernel") == str(spec.kernel)
    assert line.value("-smp") == "cpus=1,maxcpus=1,sockets=1,cores=1,threads=1"
    assert line.value("-m") == "size=256M"
    assert "socket,id=qmp,fd=10,server=on,wait=off" in line.values("-chardev")
    assert "socket,id=console,fd=11,server=on,wait=off" in line.values("-chardev")
    assert line.value("-serial") == "chardev:console"


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("hmp", "mode=readline", "monitor-hmp,id=extra,chardev=extra-monitor"),
        ("qmp", "mode=control", "monitor-qmp,id=extra,chardev=extra-monitor"),
        (
            "qmp-pretty",
            "mode=control,pretty=on",
            "monitor-qmp,id=extra,chardev=extra-monitor,pretty=on",
        ),
    ],
)
def test_an_extra_monitor_for_debugging(
    spec: VmSpec, kind: Literal["hmp", "qmp", "qmp-pretty"], old: str, new: str
) -> None:
    line = Line(replace(spec, extra_monitor=kind))
    assert f"chardev=extra-monitor,{old}" in line.values("-mon")
    line = Line(replace(spec, extra_monitor=kind), version="11.1")
    assert new in line.values("-object")
    assert "socket,id=extra-monitor,fd=30,server=on,wait=off" in line.values("-chardev")
    assert command.Listeners(10, 11, {"a": 12}, 30).all() == (10, 11, 30, 12)
    assert not [each for each in Line(spec).argv if "extra-monitor" in each]


def test_accelerators(spec: VmSpec) -> None:
    tcg, kvm = Line(spec), Line(spec, accelerator=KVM)
    assert (tcg.value("-accel"), tcg.value("-cpu")) == ("tcg,thread=multi", "max,-erms,-fsrm")
    assert (kvm.value("-accel"), kvm.value("-cpu")) == ("kvm", "host")
    assert "tsc_early_khz=2400000 " in tcg.value("-append") + " "
    assert "tsc_early_khz" not in kvm.value("-append")
    assert "no_timer_check" in tcg.value("-append").split()
    assert "no_timer_check" not in kvm.value("-append")
    assert Line(replace(spec, cpu_model="qemu64")).value("-cpu") == "qemu64"


def test_no_rate_is_claimed_when_it_is_unknown(spec: VmSpec) -> None:
    assert "tsc_early_khz" not in Line(spec, tsc_khz=0).value("-append")


def test_monitor_spellings(spec: VmSpec) -> None:
    assert Line(spec, version="7.2").value("-mon") == "chardev=qmp,mode=control"
    assert Line(spec, version="10.0").value("-mon") == "chardev=qmp,mode=control"
    newest = Line(spec, version="11.1")
    assert newest.values("-mon") == []
    assert "monitor-qmp,id=mon0,chardev=qmp" in newest.values("-object")


def test_seccomp(spec: VmSpec) -> None:
    on = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
    assert Line(spec).value("-sandbox") == on
    assert Line(replace(spec, sandbox_seccomp=False)).value("-sandbox") == "off"


def test_microvm(spec: VmSpec, disk: BlockDevice) -> None:
    line = Line(replace(spec, machine="microvm", image=disk, devices=(RngDevice(),)))
    assert line.value("-M").startswith("microvm,")
    assert line.value("-bios") == "qboot.rom"
    assert line.device("virtio-blk-device")["drive"] == "block1-img"
    assert "bus" not in line.device("virtio-rng-device")
    assert "virtio-serial-device,id=vserial" in line.values("-device")
    assert not any("pcie-root-port" in value for value in line.values("-device"))
    assert line.plan.placed["disk"].handle.address == MmioIndex(0)


def test_arm(spec: VmSpec, disk: BlockDevice) -> None:
    arm = replace(spec, arch="aarch64", machine="virt", image=disk, console=True)
    line = Line(arm, qemu=replace(features(), machines=("virt",)), tsc_khz=0)
    assert line.value("-M") == "virt,gic-version=max,memory-backend=mem"
    assert line.value("-cpu") == "max,pauth-impdef=on"
    assert "console=ttyAMA0" in line.value("-append").split()
    assert "no_timer_check" not in line.value("-append")
    assert line.device("virtio-blk-pci")["bus"] == "pcie.0"


def test_riscv(spec: VmSpec, disk: BlockDevice) -> None:
    riscv = replace(spec, arch="riscv64", machine="virt", image=disk, console=True)
    line = Line(riscv, qemu=replace(features(), machines=("virt",)), tsc_khz=0)
    assert (line.value("-M"), line.value("-cpu")) == ("virt,memory-backend=mem", "rv64")
    assert "console=ttyS0" in line.value("-append").split()
    assert not any("pcie-root-port" in value for value in line.values("-device"))
    assert "virtio-scsi-pci,id=scsi0,bus=pcie.0,addr=03" in line.values("-device")


def test_power(spec: VmSpec, disk: BlockDevice) -> None:
    power = replace(spec, arch="ppc64le", machine="pseries", image=disk, console=True)
    line = Line(power, qemu=replace(features(), machines=("pseries",)), tsc_khz=0)
    assert line.value("-M").startswith("pseries,x-vof=on,")
    assert (line.value("-bios"), line.value("-cpu")) == ("vof.bin", "power9")
    # A real CPU has the mitigations that an emulated one can't give.
    assert "cap-ibs=broken" in line.value("-M")
    real = Line(power, accelerator=KVM, qemu=replace(features(), machines=("pseries",)))
    assert "cap-ibs" not in real.value("-M")
    assert "console=hvc0" in line.value("-append").split()
    assert line.device("virtio-blk-pci")["bus"] == "pci.0"
    # Only a disk finds a place later.
    later = line.plan.add_hot(replace(disk, id="later"), ())
    assert str(later.handle.address) == "0:0"
    assert later.recipe.steps[-1].arguments["driver"] == "scsi-hd"
    with pytest.raises(LimitExceeded):
        line.plan.add_hot(NetDevice("n", "02:00:00:00:00:01", tap="tap0"), ())


def test_s390(spec: VmSpec, disk: BlockDevice) -> None:
    devices = (RngDevice(), NetDevice("n", "02:00:00:00:00:01", tap="tap0"))
    s390 = replace(spec, arch="s390x", machine="s390-ccw-virtio", image=disk, devices=devices)
    line = Line(s390, qemu=replace(features(), machines=("s390-ccw-virtio",)), tsc_khz=0)
    assert line.value("-M") == "s390-ccw-virtio,memory-backend=mem"
    assert "console=ttysclp0" in line.value("-append").split()
    assert line.device("virtio-blk-ccw")["devno"] == "fe.0.0001"
    assert "virtio-serial-ccw,id=vserial,devno=fe.0.0002" in line.values("-device")
    card = line.device("virtio-net-ccw")
    assert not card.keys() & {"romfile", "bus", "addr"}
    address = line.plan.placed["n"].handle.address
    assert (address, str(address)) == (CcwAddress(4), "0.0.0004")
    assert card["devno"] == "fe.0.0004"


def test_device_numbers_are_used_again(spec: VmSpec, disk: BlockDevice) -> None:
    plan = make_plan(replace(spec, arch="s390x", machine="s390-ccw-virtio", hotplug_slots=1))
    first = plan.add_hot(disk, ())
    assert first.recipe.steps[-1].arguments["devno"] == "fe.0.0100"
    assert str(first.handle.address) == "0.0.0100"
    with pytest.raises(LimitExceeded):
        plan.add_hot(replace(disk, id="other"), ())
    plan.release(first)
    assert plan.add_hot(replace(disk, id="other"), ()).handle.address == CcwAddress(0x100)
    with pytest.raises(Unsupported):
        plan.add_hot(VfioDevice("v", "0000:01:00.0"), ())


@pytest.mark.parametrize(
    ("arch", "machine"), [("s390x", "q35"), ("aarch64", "pseries"), ("ppc64le", "virt")]
)
def test_a_machine_of_another_architecture(spec: VmSpec, arch: str, machine: str) -> None:
    with pytest.raises(InvalidConfig, match=f"known for {arch}"):
        Line(replace(spec, arch=arch, machine=machine))


def test_what_foreign_machines_can_do(spec: VmSpec) -> None:
    ccw = replace(features(), devices=("vhost-user-fs-ccw", "virtio-9p-ccw"))
    s390 = capabilities(replace(spec, arch="s390x", machine="s390-ccw-virtio"), ccw, TCG)
    assert (s390.transport, s390.block_hot, s390.net_hot) == ("ccw", "add_remove", True)
    assert (s390.ninep, s390.fs_share, s390.guest_panic_event) == (True, False, True)
    assert "byte order" in s390.why_not["fs_share"]
    power = capabilities(replace(spec, arch="ppc64le", machine="pseries"), features(), TCG)
    assert (power.block_hot, power.net_hot, power.fs_share) == ("add_remove", False, True)
    assert "drmgr" in power.why_not["net_hot"]
    with pytest.raises(Unsupported, match="drmgr"):
        power.require("net_hot")


def test_kernel_arguments_of_the_caller_stand(spec: VmSpec, disk: BlockDevice) -> None:
    line = "console=hvc0 root=/dev/vdb rw panic=5 -- -I /agent.py"
    spec = replace(spec, image=replace(disk, read_only=True), cmdline=line)
    result = kernel_cmdline(spec, KVM, 0)
    kernel, _, init = result.partition(" -- ")
    assert kernel.split() == [
        *("console=hvc0", "root=/dev/vdb", "rw", "panic=5"),
        *("reboot=t", "katapy.channel=serial"),
    ]
    assert init == "-I /agent.py"


def test_root_of_the_image(spec: VmSpec, disk: BlockDevice) -> None:
    words = kernel_cmdline(replace(spec, image=disk), TCG, 0).split()
    assert {"root=/dev/vda", "rw", "cryptomgr.notests"} <= set(words)
    read_only = replace(spec, image=replace(disk, read_only=True))
    assert kernel_cmdline(read_only, TCG, 0).split()[-1] == "ro"


def test_too_long_kernel_line(spec: VmSpec) -> None:
    with pytest.raises(InvalidConfig, match="2047 bytes"):
        Line(replace(spec, cmdline="x=" + "y" * 2050))


def test_disk(spec: VmSpec, disk: BlockDevice) -> None:
    disk = replace(disk, serial="S", read_only=True, direct=True, shared=True)
    line = Line(with_device(spec, disk))
    (node,) = line.objects("-blockdev")
    assert node["read-only"] is True
    assert node["discard"] == "ignore"
    assert node["cache"] == {"direct": True, "no-flush": False}
    assert node["file"] == {
        "driver": "file",
        "filename": str(disk.path),
        "locking": "off",
        "cache": {"direct": True},
    }
    device = line.device("virtio-blk-pci")
    assert (device["drive"], device["serial"]) == (node["node-name"], "S")
    address = line.plan.placed["disk"].handle.address
    assert str(address) == device["addr"]
    assert device["bus"] == "pcie.0"


def test_disk_mistakes(spec: VmSpec, disk: BlockDevice) -> None:
    with pytest.raises(InvalidConfig, match="at most 20 bytes"):
        Line(with_device(spec, replace(disk, serial="é" * 11)))
    with pytest.raises(InvalidConfig, match="no disk image at /nonexistent"):
        Line(with_device(spec, replace(disk, path=Path("/nonexistent"))))
    with pytest.raises(Conflict):
        Line(with_device(spec, disk, disk))


def test_network(spec: VmSpec) -> None:
    by_name = Line(with_device(spec, NetDevice("n", "02:00:00:00:00:01", tap="tap0", mtu=1400)))
    (backend,) = by_name.objects("-netdev")
    assert (backend["ifname"], backend["script"], backend["vhost"]) == ("tap0", "no", False)
    device = by_name.device("virtio-net-pci")
    assert (device["mac"], device["host_mtu"]) == ("02:00:00:00:00:01", 1400)
    assert device["romfile"] == ""
    queues = Line(with_device(spec, NetDevice("n", "02:00:00:00:00:01", fds=(20, 21))))
    assert queues.objects("-netdev")[0]["fds"] == "20:21"
    assert queues.device("virtio-net-pci") | {"mq": True, "vectors": 6} == queues.device(
        "virtio-net-pci"
    )
    for wrong in (NetDevice("n", "m"), NetDevice("n", "m", tap="t", fds=(1,))):
        with pytest.raises(InvalidConfig, match="one of a tap's name, open descriptors, a socket"):
            Line(with_device(spec, wrong))


def test_a_card_of_a_daemon(spec: VmSpec) -> None:
    card = NetDevice(
        "n", "02:00:00:00:00:01", socket=Path("/a,b"), queues=2, queue_size=512, mtu=1400
    )
    with pytest.raises(InvalidConfig, match=r"7\.2\.\d+ crashes under emulation"):
        Line(with_device(spec, card))
    line = Line(with_device(spec, card), version="10.0")
    assert any(value.endswith(",path=/a,,b") for value in line.values("-chardev"))
    (backend,) = line.objects("-netdev")
    assert (backend["type"], backend["queues"]) == ("vhost-user", 2)
    device = line.device("virtio-net-pci")
    wanted = {"rx_queue_size": 512, "tx_queue_size": 512, "mq": True, "host_mtu": 1400}
    assert device | wanted == device
    assert line.values("-object") == ["memory-backend-memfd,id=mem,size=256M,share=on"]
    # A daemon does not look through the guest's IOMMU.
    behind = Line(with_device(replace(spec, iommu=True), card), version="10.0")
    assert "iommu_platform" not in behind.device("virtio-net-pci")
    with pytest.raises(InvalidConfig, match="256, 512 or 1024 entries, not 64"):
        Line(with_device(spec, replace(card, queue_size=64)), version="10.0")


def test_shares(spec: VmSpec) -> None:
    line = Line(
        with_device(
            spec,
            FsDevice("f", "tag", Path("/run/a,b.sock")),
            NinePDevice("p", "nine", Path("/a,b"), read_only=True),
        )
    )
    assert any(value.endswith(",path=/run/a,,b.sock") for value in line.values("-chardev"))
    assert line.device("vhost-user-fs-pci")["queue-size"] == 1024
    fsdev = line.value("-fsdev")
    assert fsdev.startswith("local,")
    assert ",path=/a,,b," in fsdev
    assert fsdev.endswith("readonly=on")
    assert line.device("virtio-9p-pci")["mount_tag"] == "nine"
    (memory,) = line.values("-object")
    assert memory == "memory-backend-memfd,id=mem,size=256M,share=on"
    assert Line(spec).values("-object") == ["memory-backend-ram,id=mem,size=256M,share=off"]
    with pytest.raises(InvalidConfig, match="31 bytes"):
        Line(with_device(spec, NinePDevice("p", "x" * 32, Path("/"))))


def test_small_devices(spec: VmSpec) -> None:
    line = Line(
        with_device(
            spec,
            RngDevice(),
            BalloonDevice(),
            PanicDevice(),
            SerialDevice("extra", "org.example"),
        )
    )
    assert line.device("virtio-rng-pci")["rng"] == line.objects("-object")[0]["id"]
    balloon = line.device("virtio-balloon-pci")
    assert balloon["free-page-reporting"] is True
    assert balloon["deflate-on-oom"] is True
    assert line.device("pvpanic-pci")
    ports = [each for each in line.objects("-device") if each["driver"] == "virtserialport"]
    assert [port["name"] for port in ports] == ["org.katapy.agent.0", "org.example"]
    assert sum(value.startswith("virtio-serial-pci") for value in line.values("-device")) == 1
    with pytest.raises(Unsupported):
        Line(replace(spec, machine="microvm", devices=(PanicDevice(),)))


def test_vsock(spec: VmSpec) -> None:
    spec = replace(spec, channel="vsock")
    with pytest.raises(InvalidConfig, match="needs a VsockDevice"):
        Line(spec)
    kernel = Line(with_device(spec, VsockDevice(cid=7, fd=30)))
    device = kernel.device("vhost-vsock-pci")
    assert (device["guest-cid"], device["vhostfd"]) == (7, "30")
    assert "virtserialport" not in str(kernel.argv)
    daemon = Line(with_device(spec, VsockDevice(vhost_user=Path("/v"), uds=Path("/u"))))
    assert daemon.device("vhost-user-vsock-pci")
    assert "share=on" in daemon.value("-object")
    assert "katapy.channel=vsock" in daemon.value("-append")


def test_room_to_grow(spec: VmSpec) -> None:
    spec = replace(spec, vcpus=2, max_vcpus=4, max_memory_bytes=1000 * MIB)
    line = Line(spec)
    assert line.value("-smp") == "cpus=2,maxcpus=4,sockets=1,cores=4,threads=1"
    # 744 MiB more, in whole memory blocks of 128 MiB.
    assert line.value("-m") == "size=256M,slots=1,maxmem=1024M"
    hot = "memory-backend-ram,id=hotmem,size=768M,share=off,reserve=off"
    assert hot in line.values("-object")
    assert any(value.startswith("virtio-mem-pci,") for value in line.values("-device"))
    assert "memhp_default_state=online_movable" in line.value("-append")
    dimms = Line(replace(spec, memory_hotplug="dimm"))
    assert ",slots=16," in dimms.value("-m")
    assert not any("virtio-mem" in value for value in dimms.values("-device"))
    with pytest.raises(InvalidConfig, match="microvm can't grow"):
        Line(replace(spec, machine="microvm"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": "virt"}, "known for x86_64 are q35, microvm, pc"),
        ({"vcpus": 0}, "at least one CPU"),
        ({"memory_bytes": 1000}, "whole MiB"),
        ({"kernel": Path("/nonexistent")}, "kernel: no file at /nonexistent"),
        ({"initrd": Path("/nonexistent")}, "initrd: no file at /nonexistent"),
        ({"hotplug_slots": 121}, "hotplug_slots: 0 to 120"),
        ({"root_ports": MAX_PORTS + 1}, "root ports: 0 to 64"),
    ],
)
def test_mistakes(spec: VmSpec, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Line(replace(spec, **change))


@pytest.mark.parametrize(("slots", "ports"), [(0, 0), (1, 0), (30, 3), (31, 8), (120, MAX_PORTS)])
def test_places_for_hotplug(spec: VmSpec, slots: int, ports: int, disk: BlockDevice) -> None:
    line = Line(replace(spec, hotplug_slots=slots, root_ports=ports))
    made = [value for value in line.values("-device") if value.startswith("pc")]
    assert sum(value.startswith("pcie-root-port") for value in made) == ports
    assert sum(value.startswith("pci-bridge") for value in made) == -(-slots // 30)
    addresses = {value.partition("addr=")[2].partition(",")[0] for value in made}
    assert len(addresses) == len(made)
    paths = set()
    for number in range(slots + ports):
        placed = line.plan.add_hot(replace(disk, id=str(number)), ())
        paths.add(str(placed.handle.address))
    assert len(paths) == slots + ports
    with pytest.raises(LimitExceeded):
        line.plan.add_hot(disk, ())


def test_a_device_of_the_host_gets_a_root_port(spec: VmSpec) -> None:
    plan = make_plan(replace(spec, hotplug_slots=1, root_ports=1))
    placed = plan.add_hot(VfioDevice("card", "0000:01:00.0"), ())
    assert placed.place is not None
    assert placed.place.root_port
    # Without one the bridge has to do.
    second = plan.add_hot(VfioDevice("other", "0000:02:00.0"), ())
    assert second.place is not None
    assert not second.place.root_port


def test_a_device_of_the_host_is_on_a_root_port_from_boot(spec: VmSpec) -> None:
    devices = (VfioDevice("nic", "0000:01:00.0"), VfioDevice("gpu", "0000:02:00.0"))
    plan = make_plan(replace(spec, root_ports=1, devices=devices))
    assert str(plan.placed["nic"].handle.address) == "1d/00"
    assert plan.placed["nic"].recipe.steps[-1].arguments["bus"] == "rp0"
    # Without another port it is on the root bus.
    assert plan.placed["gpu"].recipe.steps[-1].arguments["bus"] == "pcie.0"


def test_persistent_memory_of_which_nothing_may_be_written(spec: VmSpec, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(bytes(2 * MIB))
    nvdimm = PmemDevice("image", file, read_only=True, nvdimm=True)
    line = Line(replace(spec, image=nvdimm))
    (memory,) = [o for o in line.objects("-object") if o.get("mem-path")]
    # Read-only memory is nothing a vhost-user daemon is given.
    assert memory["readonly"]
    assert line.device("nvdimm")["unarmed"]
    assert {"root=/dev/pmem0", "ro"} <= set(line.value("-append").split())
    with pytest.raises(InvalidConfig, match="an NVDIMM needs q35 or pc, not microvm"):
        command.check(replace(spec, machine="microvm", devices=(nvdimm,)), features())


def test_a_port_is_free_again_after_release(spec: VmSpec, disk: BlockDevice) -> None:
    plan = make_plan(replace(spec, hotplug_slots=1))
    placed = plan.add_hot(disk, ())
    with pytest.raises(Conflict):
        plan.add_hot(disk, ())
    plan.release(placed)
    plan.release(placed)
    assert plan.add_hot(disk, ()).handle.address == placed.handle.address
    with pytest.raises(LimitExceeded):
        plan.add_hot(replace(disk, id="other"), ())


def test_cold_slots_run_out(spec: VmSpec) -> None:
    with pytest.raises(LimitExceeded, match="no slot is left"):
        make_plan(with_device(spec, *(RngDevice(str(number)) for number in range(40))))


def test_pci_paths() -> None:
    assert str(PciPath(((2, 0),))) == "02"
    assert str(PciPath(((0x1E, 0), (0, 0)))) == "1e/00"
    assert str(PciPath(((0x10, 3), (0, 0)))) == "10.3/00"
