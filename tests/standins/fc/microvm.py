"""A running microVM: its QEMU, and what the API can do to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.standins.fc import devices
from tests.standins.fc.devices import Transport, option
from tests.standins.fc.fault import Fault
from tests.standins.fc.resources import Config, Drive, Net, Pmem, Resources
from tests.standins.fc.transport import Mmio, Pci
from tests.standins.qemu import Qemu, QmpError
from tests.standins.server import Loop
from vmm.qemu.tsc import host_tsc_khz

MIB = 1 << 20
_ADDRESS_SPACE_MIB = 64 << 10
_VSOCK_FIXED = (1, 17)
_BZIMAGE = (1, 17)
_VSOCK_LOOK = 0.05
_KEYS = ("ctrl", "alt", "delete")


class MicroVm:
    """Builds QEMU's command line of the resources, starts it and drives it.

    Args:
        loop: what watches QEMU.
        resources: what the VM has.
        version: of Firecracker, as numbers.
        pci: whether it was started with ``--enable-pci``.
        on_console: gets the serial port's output.
        on_exit: called with the exit code when the guest has reset itself or QEMU is gone.
        places: slots of its devices, from a snapshot that its state will come from.
    """

    def __init__(
        self,
        loop: Loop,
        resources: Resources,
        version: tuple[int, ...],
        *,
        pci: bool,
        on_console: Callable[[bytes], None],
        on_exit: Callable[[int], None],
        places: dict[str, int] | None = None,
    ) -> None:
        self._loop = loop
        self.resources = resources
        self.paused = self._stopped = places is not None
        self._places = places
        self._version = version
        self._pci = pci
        self._on_exit = on_exit
        self._nodes: dict[str, str] = {}
        self._serial = 0
        self._fds: list[int] = []
        self._transport = self._choose_transport()
        arguments = self._arguments()
        if places is not None:
            arguments += ["-incoming", "defer"]
        try:
            self.qemu = Qemu(
                loop,
                arguments,
                fds=self._fds,
                on_console=on_console,
                on_event=self._event,
                on_exit=lambda status: on_exit(0 if status == 0 else 1),
            )
        except QmpError as error:
            raise Fault(f"Cannot start microvm: {error}") from error
        if isinstance(self._transport, Pci):
            self._transport.enable_hotplug(self.qemu)
        for drive in resources.drives:
            if drive.config.get("rate_limiter"):
                self._throttle(drive)

    def start(self) -> None:
        """Let the guest run."""
        self.qemu.execute("cont")
        self._await_vsock()
        balloon = self.resources.balloon
        if balloon is not None and balloon["amount_mib"]:
            self.set_balloon(balloon["amount_mib"])

    def _await_vsock(self) -> None:
        """Let hosts through to the guest once its vsock driver is up."""
        vsock = self.resources.vsock
        if vsock is None:
            return
        try:
            started = not self.paused and self.qemu.vsock_started()
        except QmpError:
            return  # it ended
        if started:
            vsock.connect_guest()
        else:
            self._loop.after(_VSOCK_LOOK, self._await_vsock)

    def _choose_transport(self) -> Transport:
        resources = self.resources
        # QEMU's microvm has no place for memory devices; its PCI machines have.
        if self._pci or resources.pmems or resources.memory_hotplug:
            return Pci(self._places)
        line = (resources.boot or {}).get("boot_args") or ""
        return Mmio(acpi="acpi=off" not in line.split())

    # -- the command line ------------------------------------------------------------

    def _arguments(self) -> list[str]:
        machine = self.resources.machine
        size = machine["mem_size_mib"]
        memory = f"size={size}M"
        if self._transport.pci:
            memory += f",slots=1,maxmem={size + _ADDRESS_SPACE_MIB}M"
        ram = f"memory-backend-memfd,id=mem,size={size}M,share=on"
        return [
            *self._transport.machine(),
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(machine["vcpu_count"])),
            *("-m", memory, "-object", ram),
            *("-serial", "chardev:console"),
            *("-action", "reboot=shutdown,shutdown=pause,panic=none"),
            *self._kernel(),
            *self._devices(),
        ]

    def _kernel(self) -> list[str]:
        resources = self.resources
        if resources.boot is None:
            return []
        magic = os.pread(resources.kernel_fd, 4, 0)
        if magic != b"\x7fELF" and self._version < _BZIMAGE:
            raise Fault("Cannot start microvm: Kernel loader: Invalid ELF magic number")
        line = resources.command_line(pci=self._transport.pci)
        if self._transport.pci and not self._pci:
            # Ours alone: the guest must see the PCI that stands in for MMIO here.
            line = " ".join(word for word in line.split(" ") if word != "pci=off")
        # Emulation: a guest on a busy host fails to measure its clock.
        line += f" tsc_early_khz={host_tsc_khz()}"
        arguments = ["-kernel", self._file(resources.kernel_fd), "-append", line]
        if resources.initrd_fd >= 0:
            arguments += ["-initrd", self._file(resources.initrd_fd)]
        return arguments

    def _file(self, fd: int) -> str:
        self._fds.append(fd)
        return f"/proc/self/fd/{fd}"

    def _devices(self) -> list[str]:
        resources, transport = self.resources, self._transport
        arguments: list[str] = []
        if resources.balloon is not None:
            front = transport.place("virtio-balloon", "balloon")
            front["deflate-on-oom"] = resources.balloon["deflate_on_oom"]
            front["free-page-reporting"] = bool(resources.balloon.get("free_page_reporting"))
            arguments += ["-device", option(front)]
        for drive in resources.drives:
            arguments += self._cold_drive(drive)
        for net in resources.nets:
            self._fds.append(net.fd)
            arguments += ["-netdev", option(devices.net_backend(net, str(net.fd)))]
            arguments += ["-device", option(devices.net_front(net, transport))]
        for pmem in resources.pmems:
            arguments += ["-object", option(devices.pmem_backend(pmem))]
            arguments += ["-device", option(self._pmem_front(pmem))]
        if resources.vsock is not None:
            fd = resources.vsock.vhost.fileno()
            self._fds.append(fd)
            front = {**transport.place("vhost-user-vsock", "vsock"), "chardev": "vsock"}
            arguments += ["-chardev", f"socket,id=vsock,fd={fd}", "-device", option(front)]
        if resources.entropy is not None:
            front = {**transport.place("virtio-rng", "rng"), "rng": "entropy"}
            arguments += ["-object", "rng-builtin,id=entropy", "-device", option(front)]
        if resources.memory_hotplug is not None:
            arguments += self._memory(resources.memory_hotplug)
        return arguments

    def _cold_drive(self, drive: Drive) -> list[str]:
        if drive.fd < 0:
            front = self._transport.place("vhost-user-blk", f"drive_{drive.id}")
            socket = f"socket,id=chr_{drive.id},path={drive.config['socket']}"
            front["chardev"] = f"chr_{drive.id}"
            return ["-chardev", socket, "-device", option(front)]
        self._fds.append(drive.fd)
        node = self._new_node(drive)
        fdset = 1000 + self._serial
        return [
            *("-add-fd", f"fd={drive.fd},set={fdset}"),
            *("-blockdev", option(devices.drive_node(drive, node, fdset))),
            *("-device", option(devices.drive_front(drive, node, self._transport))),
        ]

    def _memory(self, config: Config) -> list[str]:
        size = config["total_size_mib"]
        ram = f"memory-backend-memfd,id=hotmem,size={size}M,share=on,reserve=off"
        front = self._transport.place("virtio-mem", "vmem")
        front |= {"memdev": "hotmem", "requested-size": 0}
        front["block-size"] = config["block_size_mib"] * MIB
        return ["-object", ram, "-device", option(front)]

    def _pmem_front(self, pmem: Pmem) -> dict[str, Any]:
        front = self._transport.place("virtio-pmem", f"pmem_{pmem.id}")
        return {**front, "memdev": f"pmemdev_{pmem.id}"}

    def _new_node(self, drive: Drive) -> str:
        self._serial += 1
        self._nodes[drive.id] = f"node{self._serial}"
        return self._nodes[drive.id]

    # -- what happens ------------------------------------------------------------------

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name == "SHUTDOWN" and data.get("reason") in ("guest-reset", "host-qmp-system-reset"):
            self._on_exit(0)
        # A guest that powers off only halts its CPUs: there is nothing to switch it off.

    def pause(self) -> None:
        """Stop CPUs and devices."""
        if self.paused:
            return
        # QEMU's own stop takes the queues from the vsock daemon, which does not stand that.
        self._stopped = self.resources.vsock is None
        if self.resources.vsock is None:
            self.qemu.execute("stop")
        else:
            self.qemu.freeze()
            self.resources.vsock.freeze()
        self.paused = True

    def resume(self) -> None:
        """Go on; before 1.17 no new host-initiated vsock connection works afterwards."""
        if not self.paused:
            return
        vsock = self.resources.vsock
        self.paused = False
        if self._stopped or vsock is None:
            self.qemu.execute("cont")
            self._await_vsock()
            return
        vsock.thaw()
        self.qemu.thaw()
        if self._version < _VSOCK_FIXED:
            vsock.hang_new_connections()

    def save(self, path: str) -> None:
        """Write memory and devices of the paused VM; it can't go on then.

        A snapshot resets the vsock device, which QEMU does to one that is loaded: whoever
        goes on is loaded from the file.

        Raises:
            QmpError: QEMU can't.
            OSError: the file can't be made.
        """
        if not self._stopped and self.resources.vsock is not None:
            self.resources.vsock.thaw()
            self.qemu.wake_stopped()
            self._stopped = True
        self.qemu.save(path)

    def places(self) -> dict[str, int]:
        """Return the slots of its devices."""
        return self._transport.places()

    def load(self, path: str) -> None:
        """Take in what :meth:`save` wrote; it is paused then.

        Raises:
            QmpError: QEMU can't.
            OSError: the file can't be opened.
        """
        self.qemu.load(path)

    def send_ctrl_alt_del(self) -> None:
        """Press the keys; a guest without i8042 driver feels nothing."""
        keys = [{"type": "qcode", "data": key} for key in _KEYS]
        self.qemu.execute("send-key", keys=keys)

    def set_balloon(self, amount_mib: int) -> None:
        """Ask the guest to give memory up, or take it back."""
        value = (self.resources.machine["mem_size_mib"] - amount_mib) * MIB
        self.qemu.execute("balloon", value=max(value, MIB))

    def balloon_mib(self) -> int:
        """Return what the guest has given up by now."""
        actual: int = self.qemu.execute("query-balloon")["actual"]
        return int(self.resources.machine["mem_size_mib"]) - actual // MIB

    def swap_drive(self, drive: Drive, path: str) -> None:
        """Put another file behind a drive.

        Raises:
            Fault: it can't be opened.
        """
        old = self._nodes[drive.id]
        drive.reopen(path)
        try:
            devices.swap_drive(self.qemu, drive, old, self._new_node(drive))
            devices.forget_scratch(self.qemu)
        except QmpError as error:
            raise Fault(f"Unable to patch the block device: {error}") from error

    def limit_drive(self, drive: Drive, limiter: Config) -> None:
        """Change a drive's limits; buckets that are not named stay."""
        drive.config["rate_limiter"] = {**drive.config.get("rate_limiter", {}), **limiter}
        self._throttle(drive)

    def drive_names(self) -> dict[str, str]:
        """Return the drives' ids by QEMU's block nodes."""
        return {node: identity for identity, node in self._nodes.items()}

    def _throttle(self, drive: Drive) -> None:
        limits = devices.throttle(drive.config.get("rate_limiter"))
        # Behind a PCI transport the disk is a device of its own.
        path = f"/machine/peripheral/drive_{drive.id}"
        path += "/virtio-backend" if self._transport.pci else ""
        self.qemu.run("block_set_io_throttle", {"id": path, **limits})

    # -- memory ------------------------------------------------------------------------

    def request_memory(self, size_mib: int) -> None:
        """Ask the guest to plug or unplug hot-pluggable memory."""
        self.qemu.execute(
            "qom-set",
            path="/machine/peripheral/vmem",
            property="requested-size",
            value=size_mib * MIB,
        )

    def memory_status(self) -> Config:
        """Return sizes in MiB, as GET /hotplug/memory has them."""
        assert self.resources.memory_hotplug is not None

        def get(name: str) -> int:
            value: int = self.qemu.execute(
                "qom-get", path="/machine/peripheral/vmem", property=name
            )
            return value // MIB

        return {
            **self.resources.memory_hotplug,
            "plugged_size_mib": get("size"),
            "requested_size_mib": get("requested-size"),
        }

    # -- hot-plug ----------------------------------------------------------------------

    def _require_pci(self) -> Pci:
        if not self._pci or not isinstance(self._transport, Pci):
            raise Fault("PCI is not enabled. Device hotplug is only supported with PCI enabled.")
        return self._transport

    def plug_drive(self, drive: Drive) -> None:
        """Add a drive; the guest finds it when it looks.

        Raises:
            Fault: no PCI, or no slot.
        """
        transport = self._require_pci()
        node = self._new_node(drive)
        front = devices.drive_front(drive, node, transport)
        fdset = self.qemu.run("add-fd", {}, drive.fd)["fdset-id"]
        self._plug(
            [
                ("blockdev-add", devices.drive_node(drive, node, fdset)),
                ("device_add", front),
            ]
        )
        self.resources.drives.append(drive)
        if drive.config.get("rate_limiter"):
            self._throttle(drive)

    def plug_net(self, net: Net) -> None:
        """Add an interface; as :meth:`plug_drive`."""
        front = devices.net_front(net, self._require_pci())
        fd = self.qemu.give_fd(net.fd)
        self._plug([("netdev_add", devices.net_backend(net, fd)), ("device_add", front)])
        self.resources.nets.append(net)

    def plug_pmem(self, pmem: Pmem) -> None:
        """Add a pmem device; as :meth:`plug_drive`."""
        self._require_pci()
        backend = devices.pmem_backend(pmem)
        self._plug([("object-add", backend), ("device_add", self._pmem_front(pmem))])
        self.resources.pmems.append(pmem)

    def _plug(self, steps: list[tuple[str, dict[str, Any]]]) -> None:
        try:
            for command, arguments in steps:
                self.qemu.run(command, arguments)
        except QmpError as error:
            self._transport.free(steps[-1][1]["id"])
            raise Fault(f"PCI error: {error}") from error

    def unplug(self, name: str, undo: list[tuple[str, dict[str, Any]]]) -> None:
        """Take a device away at once, whether the guest is done with it or not."""
        transport = self._require_pci()
        self.qemu.execute("device_del", id=name)
        self.qemu.wait_event("DEVICE_DELETED", "device", name)
        for command, arguments in undo:
            self.qemu.run(command, arguments)
        transport.free(name)

    def unplug_drive(self, drive: Drive) -> None:
        """Take a drive away."""
        node = self._nodes[drive.id]
        self.unplug(f"drive_{drive.id}", [("blockdev-del", {"node-name": node})])
        self.resources.drives.remove(drive)
        os.close(drive.fd)

    def unplug_net(self, net: Net) -> None:
        """Take an interface away."""
        self.unplug(f"net_{net.id}", [("netdev_del", {"id": f"netdev_{net.id}"})])
        self.resources.nets.remove(net)
        os.close(net.fd)

    def unplug_pmem(self, pmem: Pmem) -> None:
        """Take a pmem device away."""
        self.unplug(f"pmem_{pmem.id}", [("object-del", {"id": f"pmemdev_{pmem.id}"})])
        self.resources.pmems.remove(pmem)
        os.close(pmem.fd)
