"""What a microVM is to have: checked and opened when it is asked for, as Firecracker does."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

from tests.standins.fc.fault import Fault
from tests.standins.server import Loop
from tests.standins.taps import open_tap
from tests.standins.vsock import VsockBackend

Config = dict[str, Any]

COMMAND_LINE_MAX = 2048
DEFAULT_COMMAND_LINE = (
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd "
    "swiotlb=noforce"
)
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


def open_file(path: str, *, writable: bool, what: str) -> int:
    """Open a backing file.

    Raises:
        Fault: it can't be opened so.
    """
    try:
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise Fault(f"{what}: {error.strerror} (os error {error.errno}) {path}") from error


@dataclass
class Drive:
    """A block device.

    Args:
        config: as it was asked for.
        fd: its file; -1 for a vhost-user one.
    """

    config: Config
    fd: int

    @property
    def id(self) -> str:
        """Its ``drive_id``."""
        return str(self.config["drive_id"])

    @property
    def root(self) -> bool:
        """Whether the kernel's root is on it."""
        return bool(self.config["is_root_device"])

    @property
    def read_only(self) -> bool:
        """Whether the guest can't write; stays as it was made."""
        return bool(self.config.get("is_read_only", False))

    def reopen(self, path: str) -> None:
        """Take another file from now on."""
        fd = open_file(path, writable=not self.read_only, what="Unable to patch the block device")
        os.close(self.fd)
        self.fd = fd
        self.config["path_on_host"] = path


def make_drive(config: Config) -> Drive:
    """Open a drive.

    Raises:
        Fault: it can't be as described.
    """
    has_file = config.get("path_on_host") is not None
    if has_file == (config.get("socket") is not None):
        raise Fault("Unable to create the block device: Virtio backend error: Invalid config")
    if not has_file:
        foreign = ("is_read_only", "rate_limiter", "io_engine")
        if any(name in config for name in foreign):
            raise Fault("Unable to create the block device: Vhost-user backend: Invalid config")
        return Drive(config, -1)
    what = "Unable to create the block device: Virtio backend error: BackingFile"
    fd = open_file(
        config["path_on_host"], writable=not config.get("is_read_only", False), what=what
    )
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise Fault(f"{what}: not a regular file or block device: {config['path_on_host']}")
    return Drive(config, fd)


@dataclass
class Net:
    """A network interface with its open tap."""

    config: Config
    fd: int

    @property
    def id(self) -> str:
        """Its ``iface_id``."""
        return str(self.config["iface_id"])


def make_net(config: Config) -> Net:
    """Open a tap.

    Raises:
        Fault: there is none of that name, it is in use, or the MAC address is none.
    """
    mac = config.get("guest_mac")
    if mac is not None and not _MAC.fullmatch(mac):
        raise Fault(
            f"An error occurred when deserializing the json body of a request: {mac} is no MAC"
        )
    name = config["host_dev_name"]
    try:
        return Net(config, open_tap(name))
    except OSError as error:
        raise Fault(
            f"Could not create the network device: Open tap device failed: Error while creating "
            f"ifreq structure: {error.strerror} (os error {error.errno}). Invalid TUN/TAP Backend "
            f"provided by {name}. Check our documentation on setting up the network devices."
        ) from error


@dataclass
class Pmem:
    """A pmem device with its file."""

    config: Config
    fd: int

    @property
    def id(self) -> str:
        """Its ``id``."""
        return str(self.config["id"])


def make_pmem(config: Config) -> Pmem:
    """Open a pmem device's file.

    Raises:
        Fault: it can't be, or is empty.
    """
    what = "Error creating pmem device"
    fd = open_file(config["path_on_host"], writable=not config.get("read_only", False), what=what)
    if os.fstat(fd).st_size == 0:
        os.close(fd)
        raise Fault(f"{what}: backing file empty")
    return Pmem(config, fd)


@dataclass
class Resources:
    """Everything that was asked for before the start.

    ``configured`` is set by what forbids to load a snapshot afterwards.
    """

    machine: Config = field(
        default_factory=lambda: {
            "vcpu_count": 1,
            "mem_size_mib": 128,
            "smt": False,
            "track_dirty_pages": False,
            "huge_pages": "None",
        }
    )
    boot: Config | None = None
    kernel_fd: int = -1
    initrd_fd: int = -1
    drives: list[Drive] = field(default_factory=list)
    nets: list[Net] = field(default_factory=list)
    pmems: list[Pmem] = field(default_factory=list)
    vsock: VsockBackend | None = None
    balloon: Config | None = None
    entropy: Config | None = None
    serial: Config | None = None
    memory_hotplug: Config | None = None
    mmds: Config | None = None
    mmds_data: Any = None
    cpu: Config | None = None
    logger: Config | None = None
    metrics: Config | None = None
    configured: bool = False

    def set_machine(self, update: Config) -> None:
        """Change the machine; all of it fails when a part does.

        Raises:
            Fault: CPUs or memory out of range.
        """
        machine = {**self.machine, **update}
        count = machine["vcpu_count"]
        if not 1 <= count <= 32 or (machine["smt"] and count > 1 and count % 2):
            raise Fault(
                "The vCPU number is invalid! The vCPU number can only be 1 or an even number when "
                "SMT is enabled."
            )
        size = machine["mem_size_mib"]
        if size == 0 or (machine["huge_pages"] != "None" and size % 2):
            raise Fault("The memory size (MiB) is invalid.")
        if self.balloon is not None and self.balloon["amount_mib"] > size:
            raise Fault("The memory size (MiB) is smaller than the previously set balloon's.")
        self.machine = machine

    def set_boot(self, config: Config) -> None:
        """Open kernel and initrd.

        Raises:
            Fault: a file can't be opened, or the command line is too long.
        """
        kernel = open_file(
            config["kernel_image_path"], writable=False, what="The kernel file cannot be opened"
        )
        initrd = -1
        if config.get("initrd_path") is not None:
            try:
                initrd = open_file(
                    config["initrd_path"], writable=False, what="The initrd file cannot be opened"
                )
            except Fault:
                os.close(kernel)
                raise
        line = config.get("boot_args") or ""
        if len(line.encode()) + 1 > COMMAND_LINE_MAX or not line.isascii():
            raise Fault(f"The kernel command line is invalid: too long or no ASCII: {line}")
        self.boot, self.kernel_fd, self.initrd_fd = config, kernel, initrd

    def put_drive(self, config: Config) -> None:
        """Add or replace a drive; the root one comes first.

        Raises:
            Fault: a second root device, or it can't be opened.
        """
        index = next((i for i, d in enumerate(self.drives) if d.id == config["drive_id"]), None)
        if config["is_root_device"]:
            if any(pmem.config.get("root_device") for pmem in self.pmems):
                raise Fault("Attempting to add a second root block device.")
            if self.drives and self.drives[0].root and index != 0:
                raise Fault("A root block device already exists!")
        drive = make_drive(config)
        if index is not None:
            os.close(self.drives[index].fd)
            del self.drives[index]
        else:
            index = len(self.drives)
        self.drives.insert(0 if drive.root else index, drive)

    def put_net(self, config: Config) -> None:
        """Add or replace a network interface.

        Raises:
            Fault: the MAC address is in use, or the tap can't be opened.
        """
        self.check_mac(config)
        for net in [net for net in self.nets if net.id == config["iface_id"]]:
            self.nets.remove(net)
            os.close(net.fd)
        self.nets.append(make_net(config))

    def check_mac(self, config: Config) -> None:
        """Raise when another interface has the MAC address.

        Raises:
            Fault: it has.
        """
        mac = config.get("guest_mac")
        for net in self.nets:
            if net.id != config["iface_id"] and mac and net.config.get("guest_mac") == mac:
                raise Fault(f"The MAC address is already in use: {mac}")

    def put_pmem(self, config: Config) -> None:
        """Add or replace a pmem device.

        Raises:
            Fault: a second root device, or it can't be opened.
        """
        if config.get("root_device"):
            if self.drives and self.drives[0].root:
                raise Fault("Attempting to add a second root device.")
            if any(p.config.get("root_device") and p.id != config["id"] for p in self.pmems):
                raise Fault("A root pmem device already exist.")
        pmem = make_pmem(config)
        for old in [old for old in self.pmems if old.id == pmem.id]:
            self.pmems.remove(old)
            os.close(old.fd)
        self.pmems.append(pmem)

    def put_vsock(self, config: Config, loop: Loop) -> None:
        """Bind the host's socket; a former one goes.

        Raises:
            Fault: the path exists or can't be bound.
        """
        if self.vsock is not None:
            self.vsock.close()
            os.unlink(self.vsock.uds)
            self.vsock = None
        try:
            self.vsock = VsockBackend(config["guest_cid"], config["uds_path"], loop)
        except OSError as error:
            raise Fault(
                "Cannot create backend for vsock device: Error binding to the host-side Unix "
                f"socket: {error.strerror} (os error {error.errno})"
            ) from error

    def renew_vsock(self, loop: Loop) -> None:
        """Put a new device in the present one's place, if there is one: no connection stays.

        Raises:
            Fault: the path can't be bound.
        """
        if self.vsock is not None:
            self.put_vsock({"guest_cid": self.vsock.cid, "uds_path": self.vsock.uds}, loop)

    def put_memory_hotplug(self, config: Config) -> None:
        """Set the hot-pluggable memory.

        Raises:
            Fault: sizes that don't fit each other.
        """
        config = {"block_size_mib": 2, "slot_size_mib": 128, **config}
        block, slot = config["block_size_mib"], config["slot_size_mib"]
        total = config["total_size_mib"]
        if block < 2:
            raise Fault("Block size must not be lower than 2 MiB")
        if block & (block - 1):
            raise Fault("Block size must be a power of 2")
        if slot < 128:
            raise Fault("Slot size must not be lower than 128 MiB")
        if slot % block:
            raise Fault(f"Slot size must be a multiple of block size {block} MiB")
        if total < slot:
            raise Fault(f"Total size must not be lower than slot size {slot} MiB")
        if total % slot:
            raise Fault(f"Total size must be a multiple of slot size {slot} MiB")
        self.memory_hotplug = config

    def put_balloon(self, config: Config) -> None:
        """Set the balloon.

        Raises:
            Fault: it is larger than the memory.
        """
        if config["amount_mib"] > self.machine["mem_size_mib"]:
            raise Fault("The amount of pages requested is too large.")
        self.balloon = {"stats_polling_interval_s": 0, **config}

    def command_line(self, *, pci: bool) -> str:
        """Return the guest kernel's command line.

        Raises:
            Fault: it grew too long.
        """
        assert self.boot is not None
        given = self.boot.get("boot_args")
        words = [DEFAULT_COMMAND_LINE if given is None else given]
        if not pci:
            words.append("pci=off")
        if self.drives and self.drives[0].root:
            drive = self.drives[0].config
            uuid = drive.get("partuuid")
            words.append(f"root=PARTUUID={uuid}" if uuid else "root=/dev/vda")
            words.append("ro" if self.drives[0].read_only else "rw")
        for index, pmem in enumerate(self.pmems):
            if pmem.config.get("root_device"):
                words.append(f"root=/dev/pmem{index}")
                words.append("ro" if pmem.config.get("read_only") else "rw")
        line = " ".join(word for word in words if word)
        if len(line) + 1 > COMMAND_LINE_MAX:
            raise Fault("Cannot start microvm: the kernel command line is too long")
        return line

    def describe(self) -> Config:
        """Return what GET /vm/config shows."""
        return {
            "balloon": self.balloon,
            "drives": [drive.config for drive in self.drives],
            "boot-source": self.boot
            or {"kernel_image_path": "", "initrd_path": None, "boot_args": None},
            "cpu-config": self.cpu,
            "logger": self.logger,
            "machine-config": self.machine,
            "metrics": self.metrics,
            "mmds-config": self.mmds,
            "network-interfaces": [net.config for net in self.nets],
            "vsock": None
            if self.vsock is None
            else {"guest_cid": self.vsock.cid, "uds_path": self.vsock.uds},
            "entropy": self.entropy,
            "pmem": [pmem.config for pmem in self.pmems],
            "memory-hotplug": self.memory_hotplug,
        }
