from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from shim.cli import guest, vm
from shim.cli.findings import Finding, Level
from shim.config.hypervisors import CloudHypervisor, Firecracker, Qemu
from shim.config.model import Config, Katapy
from vmm.arch import host_architecture
from vmm.image.build import agent_key
from vmm.image.store import GuestImage, image_directory, write_record
from vmm.qemu import accel


def config(cache: Path, **keys: Any) -> Config:
    ours = {f.name for f in dataclasses.fields(Katapy)} & keys.keys()
    return Config(
        hypervisor=Qemu(**{key: value for key, value in keys.items() if key not in ours}),
        katapy=Katapy(cache_dir=cache, **{key: keys[key] for key in ours}),
    )


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def build(cache: Path, kind: Any, agent: str) -> GuestImage:
    """Put an image's files in place, as the builder does."""
    directory = image_directory(cache, kind, host_architecture(), agent * 2)
    directory.mkdir(parents=True)
    image = GuestImage(
        kind=kind,
        architecture=host_architecture(),
        kernel=directory / "vmlinux",
        initrd=None,
        rootfs=directory / "rootfs.erofs",
        kernel_args="ro",
        key=agent * 2,
        kernel_release="6.1.0",
        agent_key=agent,
        versions={"crun": "1.8"},
        built=1.0 + (kind == "tuned"),
    )
    image.kernel.touch()
    image.rootfs.touch()
    write_record(directory, image)
    return image


def test_accelerator(tmp_path: Path) -> None:
    works = accel.detect().name == "kvm"
    assert only(vm.accelerator(config(tmp_path, accelerator="tcg"))).level is Level.OK
    found = only(vm.accelerator(config(tmp_path)))
    assert found.level is (Level.OK if works else Level.WARN)
    found = only(vm.accelerator(config(tmp_path, accelerator="kvm")))
    assert found.level is (Level.OK if works else Level.FAIL)


def test_qemu(tmp_path: Path) -> None:
    first, *_ = vm.hypervisor(config(tmp_path))
    assert first.level is Level.OK
    found = only(vm.hypervisor(config(tmp_path, path=tmp_path / "none")))
    assert found.level is Level.FAIL
    assert str(tmp_path / "none") in found.text
    assert only(vm.hypervisor(config(tmp_path, path=Path("/bin/false")))).level is Level.FAIL


@pytest.mark.parametrize(
    ("shared_fs", "daemon", "kernel", "level"),
    [
        ("none", "", "debian", Level.OK),
        ("virtio-9p", "", "tuned", Level.OK),
        ("virtio-9p", "", "debian", Level.FAIL),
        ("virtio-fs", "/bin/true", "debian", Level.OK),
        ("virtio-fs", "/none", "tuned", Level.FAIL),
        ("auto", "/none", "tuned", Level.WARN),
        ("auto", "/none", "debian", Level.FAIL),
        ("auto", "/bin/true", "debian", Level.OK),
    ],
)
def test_shared_directories(
    tmp_path: Path, shared_fs: str, daemon: str, kernel: str, level: Level
) -> None:
    keys = {"shared_fs": shared_fs, "guest_kernel": kernel}
    made = config(tmp_path, virtio_fs_daemon=Path(daemon) if daemon else None, **keys)
    assert only(vm.shared_directories(made)).level is level


def test_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(vm.channel(config(tmp_path))).text == "virtio-serial"
    vsock = config(tmp_path, channel="vsock")
    assert only(vm.channel(vsock, Path("/dev/null"))).level is Level.OK
    assert only(vm.channel(vsock, tmp_path / "none")).level is Level.FAIL
    daemon = tmp_path / vm.VSOCK_DAEMON
    daemon.touch()
    daemon.chmod(0o755)
    found = only(vm.channel(vsock, tmp_path / "none"))
    assert found.level is Level.OK
    assert str(daemon) in found.text
    named = config(tmp_path, channel="vsock", vhost_device_vsock=tmp_path / "other")
    assert only(vm.channel(named, tmp_path / "none")).level is Level.FAIL


def test_no_guest_image(tmp_path: Path) -> None:
    found = only(guest.guest(config(tmp_path)))
    assert found.level is Level.FAIL
    assert "katapy image build" in found.advice


def test_guest_image_of_this_and_of_another_version(tmp_path: Path) -> None:
    build(tmp_path, "debian", "0" * 64)
    found = only(guest.guest(config(tmp_path)))
    assert found.level is Level.WARN
    assert "another version" in found.text
    tuned = build(tmp_path, "tuned", agent_key())
    found = only(guest.guest(config(tmp_path)))
    assert found.level is Level.OK
    assert str(tuned.rootfs) in found.text
    assert only(guest.guest(config(tmp_path, guest_kernel="debian"))).level is Level.WARN
    assert guest.may_have_9p(config(tmp_path))
    assert not guest.may_have_9p(config(tmp_path, guest_kernel="debian"))


def test_configured_kernel_and_image(tmp_path: Path) -> None:
    kernel, image = tmp_path / "vmlinux", tmp_path / "image"
    kernel.touch()
    found = list(guest.guest(config(tmp_path, kernel=kernel, image=image)))
    assert [(f.name, f.level) for f in found] == [
        ("guest kernel", Level.OK),
        ("guest image", Level.FAIL),
    ]
    assert str(image) in found[1].text
    os.mkfifo(image)
    assert list(guest.guest(config(tmp_path, kernel=kernel, image=image)))[1].level is Level.FAIL
    image.unlink()
    image.touch()
    assert all(
        f.level is Level.OK for f in guest.guest(config(tmp_path, kernel=kernel, image=image))
    )


def test_other_hypervisors(tmp_path: Path) -> None:
    there = Config(hypervisor=Firecracker(path=Path("/bin/true")))
    assert only(vm.hypervisor(there)).level is Level.OK
    assert only(vm.shared_directories(there)).level is Level.OK
    assert only(vm.channel(there)).level is Level.OK
    missing = Config(hypervisor=CloudHypervisor(path=tmp_path / "none"))
    found = only(vm.hypervisor(missing))
    assert (found.level, str(tmp_path / "none") in found.text) == (Level.FAIL, True)
    serial = Config(hypervisor=Firecracker(), katapy=Katapy(channel="serial", accelerator="tcg"))
    assert only(vm.channel(serial)).level is Level.FAIL
    assert any("emulation" in finding.text for finding in vm.hypervisor(serial))
