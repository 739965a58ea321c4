"""Runs in the outer VM of the VFIO test: an inner VM gets its card at boot, another one later.

``python -m tests.integration.vmm.inner KERNEL INITRD QEMU CACHE_DIR ADDRESS``
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from tests.integration.vmm.guest import COMMAND_PORT, GuestShell
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import (
    MIB,
    BalloonDevice,
    PanicDevice,
    RngDevice,
    SerialDevice,
    VfioDevice,
    VmSpec,
)

_RUNTIME_DIR = Path("/run/vm")
_SLOW = 180.0  # seconds; all of it runs emulated
_LINK = "/sys/class/net/eth0"


async def main(kernel: str, initrd: str, qemu: str, cache_dir: str, address: str) -> None:
    """Boot twice and print what the guests see of the card."""
    card = VfioDevice("card", address)
    devices = (SerialDevice("cmd", COMMAND_PORT), RngDevice(), PanicDevice(), BalloonDevice())
    spec = VmSpec(
        kernel=Path(kernel),
        initrd=Path(initrd),
        cmdline="quiet",
        runtime_dir=_RUNTIME_DIR,
        accel="kvm",
        # The rest of what a pod's VM has, as all of it must go together with the card.
        max_vcpus=2,
        memory_bytes=192 * MIB,
        max_memory_bytes=512 * MIB,
        devices=(*devices, card),
        hotplug_slots=2,
        root_ports=1,
        spawn_timeout=_SLOW,
    )

    @asynccontextmanager
    async def run(spec: VmSpec) -> AsyncIterator[tuple[QemuHypervisor, GuestShell]]:
        vm = QemuHypervisor(spec, binary=Path(qemu), cache_dir=Path(cache_dir))
        async with vm:
            print("spawned", flush=True)
            await vm.boot()
            async with await vm.dial_agent(_SLOW):
                print("booted", flush=True)
                shell = await GuestShell.open(_RUNTIME_DIR / "cmd.sock")
                try:
                    yield vm, shell
                finally:
                    await shell.aclose()

    async with run(spec) as (vm, shell):
        print("at", vm.devices["card"].address, flush=True)
        await shell.until(f"[ -e {_LINK} ]")
        print("cold", await shell.run(f"cat {_LINK}/address"), flush=True)
    async with run(replace(spec, devices=devices)) as (vm, shell):
        handle = await vm.attach(card, _SLOW)
        print("at", handle.address, flush=True)
        await shell.until(f"[ -e {_LINK} ]")
        print("hot", await shell.run(f"cat {_LINK}/address"), flush=True)
        # All of the guest's memory is open to the card, what comes later too.
        resized = await vm.resize_memory(320 * MIB, _SLOW)
        print("grown to", resized.actual // MIB, flush=True)
        await vm.detach(handle, _SLOW)
        await shell.until(f"[ ! -e {_LINK} ]")
        print("gone", flush=True)


if __name__ == "__main__":
    _, kernel_, initrd_, qemu_, cache_dir_, address_ = sys.argv
    trio.run(main, kernel_, initrd_, qemu_, cache_dir_, address_)
