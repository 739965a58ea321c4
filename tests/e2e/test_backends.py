"""Containers in VMs of Firecracker and Cloud Hypervisor: stand-ins, or real where named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.standins.install import provide
from tests.support.ctr import Ctr

pytestmark = [pytest.mark.vm, pytest.mark.root]

Configured = Callable[[str], tuple[str, str]]
SCRIPT = "uname -r; echo out; echo err >&2; exit 7"


def section(name: str, program: str, vsock_daemon: Path, folder: Path, more: str = "") -> str:
    """The configuration of one hypervisor."""
    found = provide(program, folder, vsock_daemon)
    print(f"{program}: {'real' if found.real else 'stand-in'}, {found.path}")
    return f'[hypervisor.{name}]\npath = "{found.path}"\n{more}\n'


def test_cloud_hypervisor(
    ctr: Ctr, configured: Configured, vhost_device_vsock: Path, tmp_path: Path
) -> None:
    config = section("clh", "cloud-hypervisor", vhost_device_vsock, tmp_path)
    output = ctr.run("sh", "-c", SCRIPT, options=configured(config))
    assert output.code == 7, output.error
    assert output.text.endswith("out")


@pytest.mark.parametrize("kind", ["plain", "jailed", "pci"])
def test_firecracker(
    ctr: Ctr,
    configured: Configured,
    vhost_device_vsock: Path,
    tmp_path: Path,
    image: Path,
    series: str,
    kind: str,
) -> None:
    """Without shared directories: the root file system is a disk of the snapshotter."""
    if series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    more = "enable_pci = true" if kind == "pci" else ""
    if kind == "jailed":
        jailer = provide("jailer", tmp_path, vhost_device_vsock)
        more = f'jailer_path = "{jailer.path}"'
    config = section("firecracker", "firecracker", vhost_device_vsock, tmp_path, more)
    local = ["--local"] if series.startswith("2.") else []
    ctr.ok("images", "import", *local, "--snapshotter", "blockfile", image)
    options = [*configured(config), "--snapshotter", "blockfile"]
    output = ctr.run("sh", "-c", SCRIPT, options=options)
    assert output.code == 7, output.error
    assert output.text.endswith("out")
