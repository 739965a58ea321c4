"""What a VM is made of: frozen, typed, and the same for every backend.

Standard library only and free of I/O, so that a process which must not import trio
yet can still describe and start a VM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True)
class RateLimit:
    """How fast a device may go; 0 is no limit.

    Args:
        bytes_per_second: throughput.
        bytes_burst: bytes that may pass at full speed before the limit holds.
        ops_per_second: requests or packets.
        ops_burst: requests that may pass at full speed before the limit holds.
    """

    bytes_per_second: int = 0
    bytes_burst: int = 0
    ops_per_second: int = 0
    ops_burst: int = 0


Aio = Literal["auto", "threads", "native", "io_uring"]


@dataclass(frozen=True)
class BlockDevice:
    """A disk backed by an image file or a block device.

    Args:
        id: name of the device, unique in the VM.
        path: raw image file or block device on the host.
        read_only: the guest can't write; the host file is opened read-only.
        direct: bypass the host page cache (``O_DIRECT``).
        serial: what the guest reads as serial number; at most 20 bytes.
        shared: several VMs use the image at once (no image locks; wants ``read_only``).
        discard: hand the guest's discards to the host file.
        flush: the guest's flushes reach the disk; without, a host crash may lose writes.
        aio: how the VMM does the I/O; ``auto`` is its own choice.
        limit: how fast it may go; None for no limit.
        queues: request queues of a virtio disk; 0 is the VMM's own number.
        queue_size: entries of each; 0 is the VMM's own number.
        logical_sector: bytes of the smallest request; 0 for 512.
        physical_sector: bytes the guest should write at a time; 0 for 512.
        bus: a virtio disk of its own, or one of the VM's SCSI controller
            (``VmSpec.scsi``), which uses up no slot.
    """

    id: str
    path: Path
    read_only: bool = False
    direct: bool = False
    serial: str = ""
    shared: bool = False
    discard: bool = True
    flush: bool = True
    aio: Aio = "auto"
    limit: RateLimit | None = None
    queues: int = 0
    queue_size: int = 0
    logical_sector: int = 0
    physical_sector: int = 0
    bus: Literal["virtio", "scsi"] = "virtio"


@dataclass(frozen=True)
class VhostUserBlockDevice:
    """A disk served by another process over vhost-user (SPDK, qemu-storage-daemon).

    Args:
        id: name of the device, unique in the VM.
        socket: where the daemon listens.
        queues: request queues.
    """

    id: str
    socket: Path
    queues: int = 1


@dataclass(frozen=True)
class NetDevice:
    """A network card on a tap device.

    Args:
        id: name of the device, unique in the VM.
        mac: address the guest's link gets.
        tap: name of a tap device in the VMM's network namespace, or
        fds: open tap (or macvtap) queues; the backend passes copies, the caller closes its own.
        mtu: announced to the guest in bytes; 0 leaves the default.
        vhost: let the host kernel move the packets (needs ``/dev/vhost-net``).
        rx_limit: how fast the guest may receive; None for no limit.
        tx_limit: how fast the guest may send; None for no limit.
    """

    id: str
    mac: str
    tap: str = ""
    fds: tuple[int, ...] = ()
    mtu: int = 0
    vhost: bool = False
    rx_limit: RateLimit | None = None
    tx_limit: RateLimit | None = None


@dataclass(frozen=True)
class FsDevice:
    """A directory shared by a vhost-user daemon (virtio-fs).

    Args:
        id: name of the device, unique in the VM.
        tag: what the guest mounts.
        socket: where the daemon listens.
        queue_size: entries of the request queue.
    """

    id: str
    tag: str
    socket: Path
    queue_size: int = 1024


@dataclass(frozen=True)
class NinePDevice:
    """A directory shared by the VMM itself (9p); at boot only.

    Args:
        id: name of the device, unique in the VM.
        tag: what the guest mounts; at most 31 bytes.
        path: the directory on the host.
        read_only: refuse writes.
        ownership: ``passthrough`` keeps users and groups as they are (the VMM runs as
            root), ``none`` ignores that they can't be set.
    """

    id: str
    tag: str
    path: Path
    read_only: bool = False
    ownership: Literal["passthrough", "none"] = "passthrough"


@dataclass(frozen=True)
class PmemDevice:
    """A file that the guest maps as persistent memory (virtio-pmem).

    Args:
        id: name of the device, unique in the VM.
        path: the file, whole and of a size that is a multiple of 2 MiB.
        read_only: the guest's writes don't reach the file.
        limit: how fast flushes may come; None for no limit.
        nvdimm: emulate an NVDIMM, which needs no virtio driver; at boot only.
    """

    id: str
    path: Path
    read_only: bool = False
    limit: RateLimit | None = None
    nvdimm: bool = False


@dataclass(frozen=True)
class NumaNode:
    """A NUMA node of the guest.

    Args:
        vcpus: how many of the virtual CPUs it has; they are handed out in order.
        memory_bytes: its memory, whole MiB.
        host_nodes: the host's nodes its memory comes from; none for any.
    """

    vcpus: int
    memory_bytes: int
    host_nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class VfioDevice:
    """A PCI device of the host, handed to the guest.

    Args:
        id: name of the device, unique in the VM.
        address: its PCI address on the host (``0000:01:00.0``), bound to vfio-pci.
    """

    id: str
    address: str


@dataclass(frozen=True)
class RngDevice:
    """A source of randomness for the guest; at boot only."""

    id: str = "rng"


@dataclass(frozen=True)
class BalloonDevice:
    """A balloon; at boot only.

    Args:
        id: name of the device, unique in the VM.
        free_page_reporting: the guest gives unused pages back by itself.
        deflate_on_oom: the guest takes pages back rather than run out of memory.
    """

    id: str = "balloon"
    free_page_reporting: bool = True
    deflate_on_oom: bool = True


@dataclass(frozen=True)
class PanicDevice:
    """Reports a guest panic to the host; at boot only."""

    id: str = "panic"


@dataclass(frozen=True)
class SerialDevice:
    """A named byte-stream port to the guest (virtio-serial); at boot only.

    Args:
        id: name of the device, unique in the VM; names its socket in ``runtime_dir`` too.
        name: port name the guest sees.
    """

    id: str
    name: str


@dataclass(frozen=True)
class VsockDevice:
    """Sockets between host and guest (virtio-vsock).

    Args:
        id: name of the device, unique in the VM.
        cid: context id of the guest (3 or more); 0 picks a free one.
        fd: an open ``/dev/vhost-vsock`` with the cid set on it, or -1.
        vhost_user: control socket of a vhost-device-vsock daemon (hybrid vsock).
        uds: hybrid vsock: the socket a host program dials with a CONNECT line.
    """

    id: str = "vsock"
    cid: int = 0
    fd: int = -1
    vhost_user: Path | None = None
    uds: Path | None = None


Device = (
    BlockDevice
    | VhostUserBlockDevice
    | NetDevice
    | FsDevice
    | NinePDevice
    | PmemDevice
    | VfioDevice
    | RngDevice
    | BalloonDevice
    | PanicDevice
    | SerialDevice
    | VsockDevice
)


@dataclass(frozen=True)
class PciPath:
    """Where the guest finds a PCI device: (slot, function) from the root bus down.

    ``str()`` gives Kata's form: two hex digits a hop, joined by slashes (``02/00``),
    with the function where it is not 0 (``10.3/00``).
    """

    hops: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return "/".join(
            f"{slot:02x}.{function:x}" if function else f"{slot:02x}"
            for slot, function in self.hops
        )


@dataclass(frozen=True)
class MmioIndex:
    """Where the guest finds a virtio-mmio device: its number on the command line."""

    index: int


@dataclass(frozen=True)
class CcwAddress:
    """Where the guest finds a device on s390's channel bus; ``str()`` gives Kata's form.

    Args:
        number: device number, 0 to 0xffff. The virtual channel subsystem 0xfe of QEMU is the
            guest's number 0.
    """

    number: int

    def __str__(self) -> str:
        return f"0.0.{self.number:04x}"


@dataclass(frozen=True)
class ScsiAddress:
    """Where the guest finds a disk of the SCSI controller; ``str()`` gives Kata's ``id:lun``."""

    target: int
    lun: int

    def __str__(self) -> str:
        return f"{self.target}:{self.lun}"


@dataclass(frozen=True)
class DeviceNode:
    """What the guest calls a device that has no address it could be found by.

    ``str()`` gives the path of its node.
    """

    path: str

    def __str__(self) -> str:
        return self.path


Address = PciPath | MmioIndex | CcwAddress | ScsiAddress | DeviceNode


@dataclass(frozen=True)
class AttachedDevice:
    """A device of a running VM.

    Args:
        device: what was attached.
        address: where the guest finds it; None when it has no address of its own.
        hot: attached after boot, so that it can be detached.
    """

    device: Device
    address: Address | None
    hot: bool

    @property
    def id(self) -> str:
        """Name of the device."""
        return self.device.id


@dataclass(frozen=True)
class VmSpec:
    """Everything a backend must know to start a VM.

    Args:
        kernel: vmlinux (PVH) or bzImage.
        runtime_dir: existing directory for the VM's sockets; its path must be short
            (a unix socket path has 107 bytes).
        name: shown in the host's process list.
        arch: the guest's architecture as ``uname -m`` says it; empty is the host's.
        machine: the backend's machine type.
        vcpus: virtual CPUs at boot.
        max_vcpus: how far CPU hot-plug may go; 0 is ``vcpus``.
        memory_bytes: memory at boot.
        max_memory_bytes: how far memory hot-plug may go; 0 is ``memory_bytes``.
        memory_hotplug: by virtio-mem (shrinks too) or by DIMMs.
        shared_memory: back the memory by a memfd other processes can map; None does it
            when a device needs it.
        memory_file: keep the memory in this file, which is made when it isn't there. A
            snapshot leaves it there, so that the saved VM can't go on, and VMs loaded from
            it write to private copies of its pages, which no other process can see.
        restored: the VM is loaded by ``restore`` in place of ``boot``.
        initrd: initial ramdisk.
        cmdline: kernel arguments. The backend adds what the accelerator, the console,
            the root device and the channel need, unless they are in it.
        image: guest root, attached as first disk, or as first persistent memory.
        devices: what else the VM has from the start.
        channel: how ``dial_agent`` reaches the guest.
        agent_port: vsock port the guest agent listens on.
        console: capture the guest's serial console.
        netns: network namespace the VMM runs in, as an open fd; None stays.
        accel: ``kvm``, ``tcg``, or ``auto`` for the best that works.
        cpu_model: overrides the accelerator's best model.
        sandbox_seccomp: the VMM's own seccomp filter.
        hugepages: back the memory by huge pages of 2 MiB, reserved on the host.
        numa: the guest's NUMA nodes, which together have all CPUs and memory at boot.
        iommu: give the guest an IOMMU, so that it can hand devices on itself.
        scsi: give it a SCSI controller.
        panic_dump: directory that gets the guest's memory when its kernel panics.
        user: numeric user and group the VMM runs as; None stays who the caller is.
        hotplug_slots: devices that can be hot-plugged at a time.
        root_ports: places for PCI Express devices besides.
        spawn_timeout: seconds until the VMM must answer on its control channel.
        extra_args: further command-line arguments of the VMM, used as they are.
    """

    kernel: Path
    runtime_dir: Path
    name: str = "katapy"
    arch: str = ""
    machine: str = "q35"
    vcpus: int = 1
    max_vcpus: int = 0
    memory_bytes: int = 256 * MIB
    max_memory_bytes: int = 0
    memory_hotplug: Literal["virtio-mem", "dimm"] = "virtio-mem"
    shared_memory: bool | None = None
    memory_file: Path | None = None
    restored: bool = False
    initrd: Path | None = None
    cmdline: str = ""
    image: BlockDevice | PmemDevice | None = None
    devices: tuple[Device, ...] = ()
    channel: Literal["serial", "vsock"] = "serial"
    agent_port: int = 1024
    console: bool = True
    netns: int | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    cpu_model: str = ""
    sandbox_seccomp: bool = True
    hugepages: bool = False
    numa: tuple[NumaNode, ...] = ()
    iommu: bool = False
    scsi: bool = False
    panic_dump: Path | None = None
    user: tuple[int, int] | None = None
    hotplug_slots: int = 12
    root_ports: int = 0
    spawn_timeout: float = 30.0
    extra_args: tuple[str, ...] = ()

    @property
    def vcpu_limit(self) -> int:
        """Largest number of virtual CPUs this VM can have."""
        return max(self.vcpus, self.max_vcpus)

    @property
    def memory_limit(self) -> int:
        """Largest memory this VM can have, in bytes."""
        return max(self.memory_bytes, self.max_memory_bytes)

    @property
    def needs_shared_memory(self) -> bool:
        """Whether another process must map the guest's memory (vhost-user)."""
        if self.shared_memory is not None:
            return self.shared_memory
        return any(
            isinstance(device, (FsDevice, VhostUserBlockDevice))
            or (isinstance(device, VsockDevice) and device.vhost_user is not None)
            for device in self.devices
        )
