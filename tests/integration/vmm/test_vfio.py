"""A card or disk handed on: an outer VM with an IOMMU passes one of its own to an inner VM.

The outer VM sees the host's files and runs the same QEMU, with the same backend, under the
KVM that its emulated processor offers. Nothing of the host's own hardware is needed.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
import trio

from deploy.lib.busybox import write_image
from deploy.lib.containerd import fetch_containerd
from deploy.lib.guest import prepare_guest
from deploy.lib.runtime import image_dir, prepare_runtime
from tests.integration.vmm import guest
from tests.integration.vmm.conftest import Boot
from tests.support import versions
from vmm.spec import MIB, FsDevice, VmSpec
from vmm.virtiofsd import ShareOptions, run_virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.slow, pytest.mark.nested]

ROOT = Path(__file__).parents[3]
MAC = "52:54:00:12:34:56"
MODULES = ("kvm-amd", "vfio-pci", "vfio_iommu_type1")
DEADLINE_S = 1500  # in turns with others on two cores; a third of it alone
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHARING = ShareOptions(cache="always", xattr=False, sandbox="chroot", threads=4)
PORT = ("-device", "pcie-root-port,id=spare-port,bus=pcie.0,chassis=99,addr=1a.0")
# What a function needs to be behind an IOMMU, in a group of its own.
ALONE = "bus=spare-port,disable-legacy=on,iommu_platform=on,ats=on"
CARD = (
    *("-netdev", "hubport,id=spare,hubid=0", *PORT),
    *("-device", f"virtio-net-pci,netdev=spare,mac={MAC},romfile=,{ALONE}"),
)
PREPARE = """
mkdir -p /host && mount -t virtiofs host /host
mount --bind /dev /host/dev && mount --bind /sys /host/sys && mount -t proc proc /host/proc
mount -t tmpfs run /host/run && mkdir /host/run/vm
mount -t cgroup2 cgroup /host/sys/fs/cgroup
card=$(basename /sys/bus/pci/devices/0000:00:1a.0/0000:*:00.0)
echo vfio-pci > /sys/bus/pci/devices/$card/driver_override
[ ! -e /sys/bus/pci/devices/$card/driver ] || echo $card > /sys/bus/pci/devices/$card/driver/unbind
echo $card > /sys/bus/pci/drivers_probe
[ -c /dev/kvm ]
[ "$(ls /dev/vfio | grep -c '[0-9]')" = 1 ]
"""


class Outer(Protocol):
    """Runs a module's main program in the outer machine; returns what it printed."""

    async def __call__(self, module: str, *arguments: str | Path) -> str: ...


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An image with a file system of which the outer machine makes a disk."""
    image = tmp_path / "volume.ext4"
    (tmp_path / "content").mkdir()
    (tmp_path / "content/file").write_text("on-the-disk")
    command = ["/sbin/mkfs.ext4", "-q", "-d", f"{tmp_path}/content", str(image), "16M"]
    subprocess.run(command, check=True)
    return image


@pytest.fixture
def spare(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """QEMU's arguments for the outer machine's function: a card, or by parameter a disk."""
    if getattr(request, "param", "card") == "card":
        return CARD
    drive = f"if=none,id=spare,format=raw,file={request.getfixturevalue('volume')}"
    return (*PORT, "-drive", drive, "-device", f"virtio-blk-pci,drive=spare,{ALONE}")


@pytest.fixture
async def outer(
    spec: VmSpec, boot: Boot, runtime_dir: Path, qemu_program: Path, spare: tuple[str, ...]
) -> AsyncIterator[Outer]:
    """A machine with the host's files, KVM and a function bound to vfio-pci, ``$card``."""
    files = guest.build(MODULES)
    socket = runtime_dir / "fs.sock"
    spec = replace(
        spec,
        kernel=files.kernel,
        initrd=files.initrd,
        vcpus=2,
        memory_bytes=2048 * MIB,
        iommu=True,
        devices=(*spec.devices, FsDevice("host", "host", socket)),
        extra_args=spare,
    )
    async with (
        run_virtiofsd(Path("/"), socket, options=SHARING, on_line=print),
        boot(spec, binary=qemu_program) as (_, shell),
    ):
        for line in PREPARE.strip().splitlines():
            await shell.run(line)

        async def run(module: str, *arguments: str | Path) -> str:
            argv = [sys.executable, "-m", f"tests.integration.vmm.{module}", *map(str, arguments)]
            command = f"cd {shlex.quote(str(ROOT))} && {shlex.join(argv)} $card"
            inside = f"chroot /host /bin/sh -c {shlex.quote(command)}"
            await shell.run(f"export PYTHONDONTWRITEBYTECODE=1 PATH=$PATH:{HOST_PATH} card=$card")
            await shell.run(f"({inside} > /told 2>&1; echo $? > /ended) &")
            with trio.fail_after(DEADLINE_S):
                wait = "i=0; until [ -e /ended ] || [ $i -gt 20 ]; do sleep 1; i=$((i+1)); done"
                while not await shell.run(f"{wait}; cat /ended 2> /dev/null || true"):
                    print(await shell.run("tail -n 3 /told"))
            told = await shell.run("cat /told")
            print(told)
            assert (await shell.run("cat /ended")) == "0", told
            return told

        yield run


async def test_a_card_of_the_outer_machine_is_the_inner_one_s(
    outer: Outer, cache_dir: Path, qemu_program: Path
) -> None:
    inner = guest.build()
    told = await outer("inner", inner.kernel, inner.initrd, qemu_program, cache_dir)
    assert f"cold {MAC}" in told
    assert f"hot {MAC}" in told
    assert "grown to 320" in told
    assert "gone" in told


@pytest.fixture
def settings(qemu_program: Path, tmp_path: Path) -> dict[str, str]:
    """Where ``inner_container`` finds what it runs."""
    packages = versions.obtain("containerd 1.7", "trixie", lambda: fetch_containerd("trixie"))
    runtime = prepare_runtime(tmp_path / "r", Path(sysconfig.get_path("purelib")))
    prepare_guest(Path(sys.executable), runtime)
    write_image(tmp_path / "busybox.tar")
    return {
        "packages": str(packages.root),
        "launcher": str(runtime.launcher_dir),
        "images": str(image_dir()),
        "tar": str(tmp_path / "busybox.tar"),
        "qemu": str(qemu_program),
    }


async def test_a_container_has_a_card_of_the_outer_machine(
    outer: Outer, settings: dict[str, str]
) -> None:
    """By ``ctr run --device``: as a link of the guest's, hot and cold, and as a VFIO group.

    And as the link that it is on the outer machine, in the pod's network namespace.
    """
    runs = "hot cold group cold-link hot-link"
    told = await outer("inner_container", json.dumps({**settings, "runs": runs}))
    lines = {name: words for name, *words in map(str.split, told.splitlines())}
    assert MAC in lines["hot"]
    assert MAC in lines["cold"]
    group, container = lines["group"]
    assert group.isdigit()
    assert container == "vfio"
    for name in ("cold-link", "hot-link"):
        shown = " ".join(lines[name])
        # The pod's link was given another address than the card's own.
        for wanted in ("02:00:00:00:00:77", "192.0.2.2/24", "mtu 1400", "default via 192.0.2.1"):
            assert wanted in shown, shown
        driver, *links = lines[f"{name}-after"]
        assert driver == "virtio-pci"
        assert len(links) == 1  # in the machine's own namespace


@pytest.mark.parametrize("spare", ["disk"], indirect=True)
async def test_a_volume_is_a_disk_of_the_outer_machine(
    outer: Outer, settings: dict[str, str], volume: Path
) -> None:
    """By a mountInfo.json of type ``vfiovol``."""
    told = await outer("inner_container", json.dumps({**settings, "runs": "volume"}))
    lines = {name: words for name, *words in map(str.split, told.splitlines())}
    assert lines["volume"] == ["ext4", "on-the-disk"]
    command = ["/sbin/debugfs", "-R", "cat new", str(volume)]
    done = await trio.run_process(command, capture_stdout=True)
    assert done.stdout == b"written\n"
