"""A VM from its start to its end, with a real QEMU and a real kernel."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.integration.vmm.conftest import Boot
from vmm.channel import make_preface
from vmm.errors import GuestTimeout, InvalidConfig, InvalidState, VmmGone
from vmm.events import ExitCause, Exited, StateChanged, VmState
from vmm.qemu.launch import launch
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import BalloonDevice, BlockDevice, MmioIndex, PanicDevice, RngDevice, VmSpec

pytestmark = [pytest.mark.vm, pytest.mark.root]


@pytest.mark.parametrize("machine", ["q35", "microvm"])
async def test_boots_with_its_devices(
    machine: str, spec: VmSpec, boot: Boot, disk: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(b"second" + bytes(4090))
    spec = replace(
        spec,
        machine=machine,
        image=BlockDevice("root", disk, read_only=True, serial="ROOT"),
        devices=(
            *spec.devices,
            RngDevice(),
            BalloonDevice(),
            BlockDevice("second", second, serial="SECOND"),
        ),
    )
    async with boot(spec) as (vm, shell):
        assert vm.state is VmState.RUNNING
        assert await shell.run("head -c 11 /dev/vda") == "katapy-disk"
        assert await shell.run("cat /sys/block/vda/ro /sys/block/vda/serial") == "1\nROOT"
        assert await shell.run("head -c 6 /dev/vdb; cat /sys/block/vdb/ro") == "second0"
        assert await shell.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
        line = await shell.run("cat /proc/cmdline")
        assert "katapy.channel=serial" in line
        assert "root=/dev/vda" in line
        if machine == "microvm":
            assert vm.devices["root"].address == MmioIndex(0)
        else:
            where = await shell.run("readlink -f /sys/block/vda/device")
            assert f"0000:00:{vm.devices['root'].address}.0" in where
        assert list(await vm.vcpu_threads()) == [0]
        assert any("BOOTED" in line for line in vm.console_tail())
        reason = await vm.kill()
        assert (reason.cause, reason.signal) == (ExitCause.HOST_SIGNAL, signal.SIGKILL)
        assert await vm.kill() is reason


async def test_agent_port_starts_anew_with_each_connection(spec: VmSpec, boot: Boot) -> None:
    async with boot(spec) as (vm, _):
        pass
    async with QemuHypervisor(spec) as vm:
        await vm.boot()
        first = await vm.dial_agent(60)
        await first.send_all(b"x" * 24)
        assert await first.receive_some(24) == b"x" * 24
        await first.send_all(b"y" * 24)  # its echo must not reach the next connection
        await first.aclose()
        async with await vm.dial_agent(20) as second:
            block = make_preface()
            await second.send_all(block)
            received = b""
            while len(received) < len(block):
                received += await second.receive_some(1000)
            assert received == block


async def test_pause_stops_the_guest(spec: VmSpec, boot: Boot) -> None:
    async with boot(spec) as (vm, shell):
        with vm.subscribe() as events:
            await vm.pause()
            assert vm.state is VmState.PAUSED
            assert await anext(events) == StateChanged(VmState.PAUSED)
            with pytest.raises(InvalidState):
                await vm.pause()
            await shell.send("uptime")
            with trio.move_on_after(0.5) as scope:
                await shell.result("uptime")
            assert scope.cancelled_caught
            await vm.resume()
        assert "up" in await shell.result("uptime")


async def test_kill_from_outside(spec: VmSpec, boot: Boot) -> None:
    async with boot(spec) as (vm, _):
        with vm.subscribe() as events:
            os.kill(vm.pid, signal.SIGKILL)
            with trio.fail_after(10):
                seen = [event async for event in events]
        assert isinstance(seen[-1], Exited)
        assert vm.exit_reason is seen[-1].reason
        assert (vm.exit_reason.cause, vm.exit_reason.signal) == (ExitCause.HOST_SIGNAL, 9)
        with pytest.raises(VmmGone, match="signal 9"):
            await vm.pause()


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("poweroff -f", ExitCause.GUEST_SHUTDOWN),
        ("reboot -f", ExitCause.GUEST_RESET),
        ("echo c > /proc/sysrq-trigger", ExitCause.GUEST_PANIC),
    ],
)
async def test_end_by_the_guest(command: str, cause: ExitCause, spec: VmSpec, boot: Boot) -> None:
    async with boot(spec) as (vm, shell):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises((AssertionError, trio.BrokenResourceError)):
                    await shell.run(command)

            nursery.start_soon(run)
            with trio.fail_after(30):
                await vm.exited.wait()
        assert vm.exit_reason is not None
        assert vm.exit_reason.cause is cause
        assert vm.exit_reason.code == 0


async def test_panic_device_tells_of_a_panic(spec: VmSpec, boot: Boot) -> None:
    spec = replace(spec, devices=(*spec.devices, PanicDevice()), console=False)
    async with boot(spec) as (vm, shell):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises((AssertionError, trio.BrokenResourceError)):
                    await shell.run("echo c > /proc/sysrq-trigger")

            nursery.start_soon(run)
            with trio.fail_after(30):
                await vm.exited.wait()
        assert vm.exit_reason is not None
        assert vm.exit_reason.cause is ExitCause.GUEST_PANIC


async def test_shutdown_kills_a_guest_that_ignores_the_button(spec: VmSpec, boot: Boot) -> None:
    async with boot(spec) as (vm, _):
        reason = await vm.shutdown(0.2)
        assert reason.cause is ExitCause.HOST_SIGNAL


async def test_a_guest_without_init_fails_with_the_console(spec: VmSpec) -> None:
    spec = replace(spec, cmdline="quiet rdinit=/nothing", initrd=None)
    async with QemuHypervisor(spec) as vm:
        await vm.boot()
        with pytest.raises(VmmGone, match=r"panicked.*Unable to mount root fs"):
            await vm.dial_agent(60)
        assert vm.state is VmState.EXITED


async def test_a_file_that_is_no_kernel(spec: VmSpec, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_text("no kernel at all\n" * 1000)
    with pytest.raises(VmmGone, match=r"VMM said: .*kernel"):
        async with QemuHypervisor(replace(spec, kernel=kernel)):
            pytest.fail("QEMU took it")


async def test_a_guest_that_does_not_answer(spec: VmSpec) -> None:
    async with QemuHypervisor(replace(spec, cmdline="")) as vm:
        await vm.boot()
        with pytest.raises(GuestTimeout, match=r"did not answer within 0\.3 s; the console says"):
            await vm.dial_agent(0.3)
        assert vm.state is VmState.RUNNING


async def test_cancelled_while_booting(spec: VmSpec) -> None:
    with trio.move_on_after(0.5) as scope:
        async with QemuHypervisor(spec) as vm:
            await vm.boot()
            await vm.dial_agent(60)
    assert scope.cancelled_caught
    assert vm.exit_reason is not None


async def test_errors_of_the_block_pass_unchanged(spec: VmSpec) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with QemuHypervisor(spec):
            raise KeyError("mine")


async def test_launched_before_trio(spec: VmSpec, cache_dir: Path) -> None:
    recorded: list[tuple[str, str | int]] = []
    launched = await trio.to_thread.run_sync(
        lambda: launch(
            spec, cache_dir=cache_dir, record=lambda kind, value: recorded.append((kind, value))
        )
    )
    async with QemuHypervisor(spec, launched=launched) as vm:
        assert vm.state is VmState.SPAWNED
        assert recorded[-1] == ("process", vm.pid)
        assert {value for kind, value in recorded if kind == "socket"} == {
            str(path) for path in launched.sockets.values()
        }
        with pytest.raises(InvalidState):
            await vm.pause()


async def test_missing_files_are_named(spec: VmSpec) -> None:
    missing = Path("/nonexistent/vmlinux")
    with pytest.raises(InvalidConfig, match="kernel: no file at /nonexistent/vmlinux"):
        async with QemuHypervisor(replace(spec, kernel=missing)):
            pytest.fail("started without a kernel")
    with pytest.raises(InvalidConfig, match="no QEMU program /nonexistent/qemu"):
        async with QemuHypervisor(spec, binary="/nonexistent/qemu"):
            pytest.fail("started without QEMU")
