"""The command line of the bare VM that a pod is held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shim.bench.bare_vm import BareSpec, command, mount_command

SPEC = BareSpec(
    binary=Path("/bin/qemu"),
    accelerator="tcg",
    cpu="max,-erms",
    machine="q35",
    vcpus=2,
    max_vcpus=4,
    memory=512 << 20,
    kernel=Path("/k"),
    initrd=None,
    kernel_line="quiet",
    root=Path("/image"),
    shared_fs="virtio-fs",
    share=Path("/s"),
    share_queue=256,
    msize=512000,
    virtiofsd=("/bin/virtiofsd",),
    disk=Path("/dev/loop7"),
    netns="world",
    tap="bare0",
    mac="02:00:00:00:00:01",
    address="192.0.2.2/24",
)


def words(spec: BareSpec) -> str:
    return " ".join(command(spec, Path("/f")))


def test_virtio_fs_needs_memory_that_can_be_shared() -> None:
    line = words(SPEC)
    assert "-object memory-backend-memfd,share=on,id=mem,size=512M" in line
    assert "-chardev socket,id=share,path=/f/virtiofs" in line
    assert "vhost-user-fs-pci,chardev=share,tag=share,queue-size=256" in line
    assert "9p" not in line


def test_9p_shares_the_directory_itself() -> None:
    line = words(replace(SPEC, shared_fs="virtio-9p"))
    assert "-object memory-backend-ram,id=mem,size=512M" in line
    assert "-fsdev local,id=share,path=/s,security_model=passthrough" in line
    assert "virtio-9p-pci,fsdev=share,mount_tag=share" in line
    assert "vhost-user" not in line


@pytest.mark.parametrize(("accelerator", "option"), [("tcg", "tcg,thread=multi"), ("kvm", "kvm")])
def test_accelerator(accelerator: str, option: str) -> None:
    argv = command(replace(SPEC, accelerator=accelerator), Path("/f"))  # type: ignore[arg-type]
    assert argv[argv.index("-accel") + 1] == option
    assert argv[argv.index("-cpu") + 1] == "max,-erms"


def test_the_disk_is_the_second_and_the_tap_has_no_script() -> None:
    argv = command(SPEC, Path("/f"))
    disks = [word for word in argv if word.startswith("if=none")]
    assert disks == [
        "if=none,id=root,format=raw,file=/image,readonly=on,file.locking=off",
        "if=none,id=disk,format=raw,file=/dev/loop7",
    ]
    assert "tap,id=net,ifname=bare0,script=no,downscript=no" in argv
    assert argv[argv.index("-append") + 1] == "quiet rdinit=/bench-init"


def test_mount_command() -> None:
    assert mount_command("virtio-fs", 0) == "mount -t virtiofs share /share"
    assert "msize=4096,cache=mmap" in mount_command("virtio-9p", 4096)
