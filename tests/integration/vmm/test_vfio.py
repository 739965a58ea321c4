"""A network card handed on: an outer VM with an IOMMU passes one of its cards to an inner VM.

The outer VM sees the host's files and runs the same QEMU, with the same backend, under the
KVM that its emulated processor offers. Nothing of the host's own hardware is needed.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.integration.vmm import guest
from tests.integration.vmm.conftest import Boot
from vmm.spec import MIB, FsDevice, VmSpec
from vmm.virtiofsd import ShareOptions, run_virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.slow, pytest.mark.nested]

ROOT = Path(__file__).parents[3]
MAC = "52:54:00:12:34:56"
MODULES = ("kvm-amd", "vfio-pci", "vfio_iommu_type1")
DEADLINE_S = 540
SHARING = ShareOptions(cache="always", xattr=False, sandbox="chroot", threads=4)
# What a card needs to be behind an IOMMU, in a group of its own.
CARD = (
    *("-netdev", "hubport,id=spare,hubid=0"),
    *("-device", "pcie-root-port,id=spare-port,bus=pcie.0,chassis=99,addr=1a.0"),
    "-device",
    f"virtio-net-pci,bus=spare-port,netdev=spare,mac={MAC},romfile=,disable-legacy=on,"
    "iommu_platform=on,ats=on",
)
PREPARE = f"""
mkdir -p /host && mount -t virtiofs host /host
mount --bind /dev /host/dev && mount --bind /sys /host/sys && mount -t proc proc /host/proc
mount -t tmpfs run /host/run && mkdir /host/run/vm
card=$(basename $(readlink -f $(dirname $(grep -l {MAC} /sys/class/net/*/address))/device/..))
echo vfio-pci > /sys/bus/pci/devices/$card/driver_override
echo $card > /sys/bus/pci/devices/$card/driver/unbind
echo $card > /sys/bus/pci/drivers_probe
[ -c /dev/kvm ]
[ "$(ls /dev/vfio | grep -c '[0-9]')" = 1 ]
"""


async def test_a_card_of_the_outer_machine_is_the_inner_one_s(
    spec: VmSpec, boot: Boot, runtime_dir: Path, cache_dir: Path, qemu_program: Path
) -> None:
    inner = guest.build()
    outer = guest.build(MODULES)
    socket = runtime_dir / "fs.sock"
    spec = replace(
        spec,
        kernel=outer.kernel,
        initrd=outer.initrd,
        vcpus=2,
        memory_bytes=1536 * MIB,
        iommu=True,
        devices=(*spec.devices, FsDevice("host", "host", socket)),
        extra_args=CARD,
    )
    script = [sys.executable, "-m", "tests.integration.vmm.inner"]
    argv = [*script, str(inner.kernel), str(inner.initrd), str(qemu_program), str(cache_dir)]
    command = f"cd {shlex.quote(str(ROOT))} && {shlex.join(argv)} $card"
    inside = f"PYTHONDONTWRITEBYTECODE=1 card=$card chroot /host /bin/sh -c {shlex.quote(command)}"
    async with (
        run_virtiofsd(Path("/"), socket, options=SHARING, on_line=print),
        boot(spec, binary=qemu_program) as (_, shell),
    ):
        for line in PREPARE.strip().splitlines():
            await shell.run(line)
        await shell.run(f"({inside} > /told 2>&1; echo $? > /ended) &")
        with trio.fail_after(DEADLINE_S):
            wait = "i=0; until [ -e /ended ] || [ $i -gt 40 ]; do sleep 1; i=$((i+1)); done"
            while not await shell.run(f"{wait}; cat /ended 2> /dev/null || true"):
                print(await shell.run("tail -n 3 /told"))
        told = await shell.run("cat /told")
        print(told)
        assert (await shell.run("cat /ended")) == "0", told
    assert f"cold {MAC}" in told
    assert f"hot {MAC}" in told
    assert "grown to 320" in told
    assert "gone" in told
