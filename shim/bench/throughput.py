"""How fast data gets in and out of a pod, beside a bare VM with the same devices.

Both VMs run at the same time and take turns at each line, so that they meet the same
weather. On a busy host clocks say little even so: the CPU time of the VMMs says more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from shim.backends import whole_9p
from shim.bench import bare_vm, containers, copies, wires
from shim.bench.bare_vm import BareSpec
from shim.bench.copies import MIB, Copy, Guest
from shim.bench.figures import KATAPY, Figures
from shim.bench.world import World
from shim.config.hypervisors import Qemu
from shim.config.model import Config
from shim.errors import FailedPrecondition
from shim.pod.vm_plan import plan_vm
from shim.storage.loop import attach_loop
from vmm.arch import architecture
from vmm.qemu import accel, probe, tsc
from vmm.spec import BlockDevice
from vmm.virtiofsd import find_binary, kind_of

BARE = "qemu"


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
        folder = world.folder / "vm"
        for directory in (*shares, folder):
            directory.mkdir()
        spec = bare_spec(world, config, shares[1], disks[1], links)
        say("a pod and a bare VM")
        pod = stack.enter_context(_pod(world, shares[0], disks[0], links))
        vm = stack.enter_context(bare_vm.running_bare_vm(spec, folder, world.deadline))
        place = (bare_vm.SHARE, bare_vm.DISK, wires.BARE_PEER)
        guests = [pod, Guest(BARE, vm.shell, vm.pid, shares[1], *place)]
        listener = stack.enter_context(links.listen())
        lines: tuple[tuple[str, str, Copy], ...] = (
            ("share_read", f"{spec.shared_fs}, read", copies.read_share),
            ("share_write", f"{spec.shared_fs}, write", copies.write_share),
            ("disk_read", "disk, read", copies.read_disk),
            ("disk_write", "disk, write", copies.write_disk),
            ("tcp_out", "TCP, guest to host", partial(copies.send_out, listener)),
            ("tcp_in", "TCP, host to guest", partial(copies.send_in, listener)),
        )
        for number in range(1, runs + 1):
            say(f"run {number} of {runs}")
            for key, title, copy in lines:
                # Who is second finds the host's caches warmer: take turns in that as well.
                for guest in guests if number % 2 else guests[::-1]:
                    cost = copy(guest, mib)
                    rate = mib * MIB / cost.seconds / 1e6
                    figures.add(key, title, "MB/s", guest.name, rate)
                    cpu = cost.cpu * 1e3 / mib
                    figures.add(f"{key}_cpu", "  CPU of the VMM", "ms/MiB", guest.name, cpu)


def bare_spec(world: World, config: Config, share: Path, disk: str, links: wires.Wires) -> BareSpec:
    """Describe the VM that a pod is held against.

    Raises:
        FailedPrecondition: the configured VM has no such devices.
    """
    vm = config.hypervisor
    if not isinstance(vm, Qemu):
        raise FailedPrecondition(f"throughput is measured with QEMU, not [{vm.section}]")
    plan = plan_vm(
        config,
        name="bench",
        runtime_dir=world.folder / "plan",
        netns=None,
        whole_9p=whole_9p(config),
    )
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
        max_vcpus=spec.vcpu_limit,
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


@contextmanager
def _disk(image: Path, mib: int) -> Iterator[str]:
    """A block device of so many MiB that are in the host's memory; its path."""
    copies.fill(image, mib)
    try:
        fd, path = attach_loop(str(image), read_only=False)
    except OSError as error:
        raise FailedPrecondition(f"throughput: no loop device: {error}") from error
    try:
        yield path
    finally:
        os.close(fd)


@contextmanager
def _pod(world: World, share: Path, disk: str, links: wires.Wires) -> Iterator[Guest]:
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
        yield Guest(KATAPY, shell, vmm, share, bare_vm.SHARE, disk, wires.POD_PEER)
