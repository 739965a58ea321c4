"""How fast data gets in and out of a pod, beside a bare VM with the same devices.

Both VMs run at the same time and take turns, so that they meet the same weather. The
program in both is busybox's dd, timed by the guest's clock; what it reads the guest has
never seen (files) or does not keep (disks, by O_DIRECT), and the host has it in memory.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shim.bench import bare_vm, containers, wires
from shim.bench.bare_vm import BareSpec
from shim.bench.figures import KATAPY, Figures
from shim.bench.guest_shell import GuestShell
from shim.bench.world import World
from shim.config.hypervisors import Qemu
from shim.config.model import Config
from shim.errors import FailedPrecondition, Internal
from shim.pod.vm_plan import plan_vm
from shim.storage.loop import attach_loop
from vmm.arch import architecture
from vmm.qemu import accel, probe, tsc
from vmm.spec import BlockDevice
from vmm.virtiofsd import find_binary, kind_of

BARE = "qemu"

_MIB = 1 << 20
_BLOCK = 1 << 16
_CLOCK = re.compile(r"^clock ([0-9.]+) ([0-9.]+) ([0-9.]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Guest:
    """One side of the comparison.

    Args:
        name: its column.
        shell: in it.
        vmm: process id of its VMM.
        directory: the shared directory on the host.
        share: the same in the guest.
        disk: its disk.
        peer: the host's address in its network.
        kind: how its directory is shared.
    """

    name: str
    shell: GuestShell
    vmm: int
    directory: Path
    share: str
    disk: str
    peer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one line."""

    key: str
    title: str
    seconds: float


Step = Callable[[Guest, int], Sample]


def measure(
    world: World,
    config: Config,
    figures: Figures,
    *,
    runs: int,
    mib: int,
    say: Callable[[str], None],
) -> None:
    """Take ``runs`` samples of each line, with ``mib`` MiB of data in each.

    Raises:
        FailedPrecondition: the configured VM has no such devices.
        KatapyError: something of it failed.
    """
    with ExitStack() as stack:
        links = stack.enter_context(wires.wired(world.namespace))
        disks = [stack.enter_context(_disk(world.folder / name, mib)) for name in ("d1", "d2")]
        shares = [world.folder / name for name in ("pod", "bare")]
        for share in shares:
            share.mkdir()
        spec = bare_spec(world, config, shares[1], disks[1], links)
        folder = world.folder / "vm"
        folder.mkdir()
        say("a pod and a bare VM")
        pod = stack.enter_context(_pod(world, shares[0], disks[0], links, spec.shared_fs))
        vm = stack.enter_context(bare_vm.running_bare_vm(spec, folder, world.deadline))
        listener = stack.enter_context(links.listen())
        guests = [
            pod,
            Guest(
                BARE,
                vm.shell,
                vm.pid,
                shares[1],
                bare_vm.SHARE,
                bare_vm.DISK,
                wires.BARE_PEER,
                spec.shared_fs,
            ),
        ]
        steps: tuple[Step, ...] = (
            *(_share_read, _share_write, _block_read, _block_write),
            *(partial(_net_out, listener), partial(_net_in, listener)),
        )
        for number in range(1, runs + 1):
            say(f"shared directory, disk, network, run {number} of {runs}")
            for step in steps:
                # Who is second finds the host's caches warmer: take turns in that as well.
                for guest in guests if number % 2 else guests[::-1]:
                    before = cpu_seconds(guest.vmm)
                    line = step(guest, mib)
                    cost = (cpu_seconds(guest.vmm) - before) * 1e3 / mib
                    rate = mib * _MIB / line.seconds / 1e6
                    figures.add(line.key, line.title, "MB/s", guest.name, rate)
                    title = "  CPU time of the VMM"
                    figures.add(f"{line.key}_cpu", title, "ms/MiB", guest.name, cost)


def bare_spec(world: World, config: Config, share: Path, disk: str, links: wires.Wires) -> BareSpec:
    """Describe the VM that a pod is held against.

    Raises:
        FailedPrecondition: the configured VM has no such devices.
    """
    vm = config.hypervisor
    if not isinstance(vm, Qemu):
        raise FailedPrecondition(f"throughput is measured with QEMU, not [{vm.section}]")
    plan = plan_vm(config, name="bench", runtime_dir=world.folder / "plan", netns=None)
    spec = plan.spec
    if plan.shared_fs == "none":
        raise FailedPrecondition("throughput: shared_fs = 'none' shares nothing")
    assert isinstance(spec.image, BlockDevice)
    arch = architecture(spec.arch)
    accelerator = accel.choose(spec.accel, arch).name
    line = [spec.cmdline, f"console={arch.console}", "panic=-1", "quiet"]
    if accelerator == "tcg":
        line.append(f"tsc_early_khz={tsc.host_tsc_khz(config.katapy.cache_dir)}")
    return BareSpec(
        binary=probe.find_binary(arch, vm.path or ""),
        accelerator=accelerator,
        cpu="host" if accelerator == "kvm" else arch.emulated_cpu,
        machine=spec.machine,
        vcpus=spec.vcpus,
        memory=spec.memory_bytes,
        kernel=spec.kernel,
        initrd=spec.initrd,
        kernel_line=" ".join(line),
        root=spec.image.path,
        shared_fs=plan.shared_fs,
        share=share,
        share_queue=vm.virtio_fs_queue_size,
        msize=plan.msize,
        virtiofsd=_virtiofsd(vm, share) if plan.shared_fs == "virtio-fs" else (),
        disk=Path(disk),
        netns=links.world,
        tap=wires.TAP,
        mac=wires.BARE_MAC,
        address=wires.BARE_ADDRESS,
    )


def _virtiofsd(vm: Qemu, share: Path) -> tuple[str, ...]:
    binary = find_binary(vm.virtio_fs_daemon or "")
    if kind_of(binary) == "c":
        options = (f"source={share}", "cache=auto", "announce_submounts", "xattr")
        return (str(binary), *(word for option in options for word in ("-o", option)))
    return (str(binary), f"--shared-dir={share}", "--cache=auto", "--announce-submounts", "--xattr")


def dd_command(source: str, target: str, mib: int, more: str = "") -> str:
    """Return a line of busybox's shell that copies, and prints when it began and ended.

    It copies nothing first, so that the start of dd, slow under emulation, can be told
    from the copying.
    """
    copy = f"dd if={source} of={target} bs=1M {more}".rstrip()
    return (
        f"a=$EPOCHREALTIME; {copy} count=0 2>&1; b=$EPOCHREALTIME; {copy} count={mib} 2>&1; "
        "echo clock $a $b $EPOCHREALTIME"
    )


def seconds_of(said: str, mib: int) -> float:
    """Return how long the copying of :func:`dd_command` took.

    Args:
        said: what it printed.
        mib: how much it must have copied.

    Raises:
        Internal: it did not copy as much, or says something else.
    """
    clock = _CLOCK.search(said)
    if clock is None or f"{mib}+0 records out" not in said.splitlines():
        raise Internal(f"dd did not copy {mib} MiB: {said.strip()}")
    begin, started, end = map(float, clock.groups())
    return max(end - started - (started - begin), 1e-6)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, all of its threads.

    Source: clock_getcpuclockid(3); the number is the kernel's ABI.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _share_read(guest: Guest, mib: int) -> Sample:
    name = secrets.token_hex(4)  # the guest must not know the file
    path = guest.directory / name
    _fill(path, mib)
    said = guest.shell.run(dd_command(f"{guest.share}/{name}", "/dev/null", mib))
    path.unlink()
    return Sample("share_read", f"shared directory ({guest.kind}), read", seconds_of(said, mib))


def _share_write(guest: Guest, mib: int) -> Sample:
    name = secrets.token_hex(4)
    path = guest.directory / name
    said = guest.shell.run(dd_command("/dev/zero", f"{guest.share}/{name}", mib))
    if (there := path.stat().st_size) != mib * _MIB:
        raise Internal(f"{there} bytes of {mib} MiB had reached the host when dd ended")
    path.unlink()
    return Sample("share_write", f"shared directory ({guest.kind}), write", seconds_of(said, mib))


def _block_read(guest: Guest, mib: int) -> Sample:
    said = guest.shell.run(dd_command(guest.disk, "/dev/null", mib, "iflag=direct"))
    return Sample("block_read", "disk, read", seconds_of(said, mib))


def _block_write(guest: Guest, mib: int) -> Sample:
    said = guest.shell.run(dd_command("/dev/zero", guest.disk, mib, "oflag=direct"))
    return Sample("block_write", "disk, write", seconds_of(said, mib))


def _net_out(listener: socket.socket, guest: Guest, mib: int) -> Sample:
    size = mib * _MIB
    command = f"{_connect(guest)} if=/dev/zero count={size // _BLOCK} 2> /dev/null"
    seconds = wires.seconds_in(listener, size, lambda: guest.shell.run(command))
    return Sample("net_out", "TCP, guest to host", seconds)


def _net_in(listener: socket.socket, guest: Guest, mib: int) -> Sample:
    command = f"{_connect(guest)} of=/dev/null 2> /dev/null"
    seconds = wires.seconds_out(listener, mib * _MIB, lambda: guest.shell.run(command))
    return Sample("net_in", "TCP, host to guest", seconds)


def _connect(guest: Guest) -> str:
    """dd, with a connection for what it is not given."""
    return f"nc {guest.peer} {wires.PORT} -e dd bs={_BLOCK}"


def _fill(path: Path, mib: int) -> None:
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(_MIB))


@contextmanager
def _disk(image: Path, mib: int) -> Iterator[str]:
    """A block device of so many MiB that are in the host's memory; its path."""
    _fill(image, mib)
    try:
        fd, path = attach_loop(str(image), read_only=False)
    except OSError as error:
        raise FailedPrecondition(f"throughput: no loop device: {error}") from error
    try:
        yield path
    finally:
        os.close(fd)


@contextmanager
def _pod(world: World, share: Path, disk: str, links: wires.Wires, kind: str) -> Iterator[Guest]:
    options = (
        "--with-ns", f"network:{links.pod_path}",
        "--mount", f"type=bind,src={share},dst={bare_vm.SHARE},options=rbind:rw",
        "--device", disk,
    )  # fmt: skip
    with (
        containers.started(world, KATAPY, *options) as container,
        containers.shell(world, KATAPY, container) as shell,
    ):
        vmm = containers.vmm_pid(world, container)
        yield Guest(KATAPY, shell, vmm, share, bare_vm.SHARE, disk, wires.POD_PEER, kind)
