"""A VM of a plain command line, to hold a pod's against: QEMU, a kernel and a shell.

Nothing of katapy is in it but the guest's kernel and its modules. The command line is
written out here rather than taken from the backend, so that what the backend gets wrong
shows in the comparison.

Source: qemu(1); busybox.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shim.bench.busybox import busybox_archive
from shim.bench.deadline import Deadline
from shim.bench.guest_shell import LOOP, GuestShell
from shim.errors import DeadlineExceeded, Internal

SHARE = "/share"
DISK = "/dev/vdb"
TAG = "share"

_BOOT_TIMEOUT = 90.0
_MIB = 1 << 20
# The modules of an initramfs lie in /modules, those of the image are listed in it; a kernel
# with everything built in has neither.
_INIT = r"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /root /share
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
[ -f /modules/order ] && while read -r _ name; do insmod "/modules/$name"; done < /modules/order
until mount -t erofs -o ro /dev/vda /root; do usleep 10000; done
[ -f /root/usr/lib/katapy/modules ] && chroot /root /bin/busybox sh -c \
    'busybox xargs -n 1 busybox insmod < /usr/lib/katapy/modules' 2> /dev/null
for port in /dev/vport*; do exec 0<> "$port" 1>&0; done
echo "--end 0"
"""


@dataclass(frozen=True, slots=True)
class BareSpec:
    """What the VM is made of: the same things as the pod's.

    Args:
        binary: QEMU's program.
        accelerator: ``kvm`` or ``tcg``.
        cpu: its model.
        machine: its type.
        vcpus: how many.
        max_vcpus: how many it has places for. Under emulation two places make each atomic
            operation of the guest one of the host's, which a single CPU does without.
        memory: bytes.
        kernel, initrd: what it boots, without our init.
        kernel_line: the kernel's arguments.
        root: the guest's image, for its modules.
        shared_fs: how ``share`` is shared.
        share: a directory of the host.
        share_queue: entries of virtio-fs's queue.
        msize: largest 9p message in bytes.
        virtiofsd: its command line but for the socket, for virtio-fs.
        disk: a block device of the host.
        netns: the namespace that ``tap`` is in.
        tap: the host's end of its network.
        mac: of the guest's end.
        address: of the guest's end, with the length of the prefix.
    """

    binary: Path
    accelerator: Literal["kvm", "tcg"]
    cpu: str
    machine: str
    vcpus: int
    max_vcpus: int
    memory: int
    kernel: Path
    initrd: Path | None
    kernel_line: str
    root: Path
    shared_fs: Literal["virtio-fs", "virtio-9p"]
    share: Path
    share_queue: int
    msize: int
    virtiofsd: tuple[str, ...]
    disk: Path
    netns: str
    tap: str
    mac: str
    address: str


def command(spec: BareSpec, folder: Path) -> list[str]:
    """Return QEMU's command line.

    Args:
        spec: the VM.
        folder: holds its initramfs and gets its sockets and its console.
    """
    size = f"{spec.memory // _MIB}M"
    kind = "memfd,share=on" if spec.shared_fs == "virtio-fs" else "ram"
    words = [str(spec.binary), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    words += ["-M", f"{spec.machine},memory-backend=mem", "-cpu", spec.cpu]
    words += ["-accel", spec.accelerator + (",thread=multi" * (spec.accelerator == "tcg"))]
    words += ["-smp", f"cpus={spec.vcpus},maxcpus={spec.max_vcpus}", "-m", size]
    words += ["-object", f"memory-backend-{kind},id=mem,size={size}"]
    words += ["-kernel", str(spec.kernel), "-initrd", str(folder / "initrd")]
    words += ["-append", f"{spec.kernel_line} rdinit=/bench-init"]
    words += ["-serial", f"file:{folder / 'console'}"]
    words += ["-device", "virtio-serial-pci"]
    words += ["-chardev", f"socket,id=shell,path={folder / 'shell'},server=on,wait=off"]
    words += ["-device", "virtserialport,chardev=shell,name=shell"]
    for name, path, more in (("root", spec.root, ",readonly=on"), ("disk", spec.disk, "")):
        locks = ",file.locking=off" if more else ""
        words += ["-drive", f"if=none,id={name},format=raw,file={path}{more}{locks}"]
        words += ["-device", f"virtio-blk-pci,drive={name}"]
    if spec.shared_fs == "virtio-9p":
        local = f"local,id=share,path={spec.share},security_model=passthrough,multidevs=remap"
        words += ["-fsdev", local, "-device", f"virtio-9p-pci,fsdev=share,mount_tag={TAG}"]
    else:
        words += ["-chardev", f"socket,id=share,path={folder / 'virtiofs'}"]
        queue = f"queue-size={spec.share_queue}"
        words += ["-device", f"vhost-user-fs-pci,chardev=share,tag={TAG},{queue}"]
    words += ["-netdev", f"tap,id=net,ifname={spec.tap},script=no,downscript=no"]
    words += ["-device", f"virtio-net-pci,netdev=net,mac={spec.mac},romfile="]
    return words


def mount_command(shared_fs: str, msize: int) -> str:
    """Return the guest's command that mounts the share."""
    if shared_fs == "virtio-fs":
        return f"mount -t virtiofs {TAG} {SHARE}"
    return f"mount -t 9p -o trans=virtio,version=9p2000.L,msize={msize},cache=mmap {TAG} {SHARE}"


@dataclass(frozen=True, slots=True)
class BareVm:
    """A running VM: the shell in it, and QEMU's process."""

    shell: GuestShell
    pid: int


@contextmanager
def running_bare_vm(spec: BareSpec, folder: Path, deadline: Deadline) -> Iterator[BareVm]:
    """Boot the VM for the length of the block, with share and network set up.

    Raises:
        FailedPrecondition: a program is missing.
        Internal, DeadlineExceeded: it does not come up; the text has its last words.
    """
    (folder / "initrd").write_bytes(_initrd(spec.initrd))
    with ExitStack() as stack:
        if spec.shared_fs == "virtio-fs":
            daemon = [*spec.virtiofsd, f"--socket-path={folder / 'virtiofs'}"]
            started = stack.enter_context(_running(daemon, folder / "virtiofsd.log"))
            _await(lambda: (folder / "virtiofs").is_socket(), started, folder, deadline)
        argv = ["ip", "netns", "exec", spec.netns, *command(spec, folder)]
        qemu = stack.enter_context(_running(argv, folder / "qemu.log"))
        port = stack.enter_context(socket.socket(socket.AF_UNIX))
        _await(lambda: _connected(port, folder / "shell"), qemu, folder, deadline)
        shell = GuestShell("bare VM", port, deadline)
        try:
            shell.answer("its boot", _BOOT_TIMEOUT)
        except (Internal, DeadlineExceeded) as error:
            raise type(error)(f"{error}: {_last_words(folder)}") from error
        shell.run(mount_command(spec.shared_fs, spec.msize))
        shell.run(f"ip addr add {spec.address} dev eth0 && ip link set eth0 up")
        yield BareVm(shell, qemu.pid)


def _initrd(base: Path | None) -> bytes:
    """The image's initramfs, and an archive behind it that adds our init."""
    archive = busybox_archive("bench-init", f"{_INIT}{LOOP}\n")
    return (base.read_bytes() if base is not None else b"") + archive


@contextmanager
def _running(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _await(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes],
    folder: Path,
    deadline: Deadline,
) -> None:
    """Wait until a daemon that just starts has its socket."""
    end = time.monotonic() + deadline.limit(_BOOT_TIMEOUT)
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise Internal(f"bare VM: {process.args!r} did not start: {_last_words(folder)}")
        time.sleep(0.01)


def _connected(shell: socket.socket, path: Path) -> bool:
    try:
        shell.connect(str(path))
    except OSError:
        return False
    return True


def _last_words(folder: Path) -> str:
    files = [folder / name for name in ("qemu.log", "virtiofsd.log", "console")]
    said = [file.read_text(errors="replace")[-500:] for file in files if file.exists()]
    return " | ".join(" ".join(said).split("\n")[-6:])
