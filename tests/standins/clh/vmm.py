"""The VMM: at most one VM, created, booted, changed and deleted."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from tests.standins.clh import config as configs
from tests.standins.clh.config import Config
from tests.standins.clh.errors import Refused
from tests.standins.clh.events import Monitor
from tests.standins.clh.machine import Machine
from tests.standins.qemu import Qemu, QmpError
from tests.standins.server import Loop

_KINDS_WITH_ONE = ("vsock",)


class Vmm:
    """Does what the API asks for.

    Args:
        loop: what everything runs on.
        monitor: told of every event.
        version: of Cloud Hypervisor.
        no_shutdown: whether a guest's power-off leaves the process there.
    """

    def __init__(
        self, loop: Loop, monitor: Monitor, version: tuple[int, ...], *, no_shutdown: bool
    ) -> None:
        self._loop = loop
        self._monitor = monitor
        self._version = version
        self._no_shutdown = no_shutdown
        self.config: Config | None = None
        self._machine: Machine | None = None
        self._fds: dict[str, list[int]] = {}
        self._paused = False
        self._count = 0
        monitor.event("vmm", "starting")

    # -- helpers -------------------------------------------------------------------------

    def _created(self, what: str) -> Config:
        if self.config is None:
            raise Refused("missing", what, "VM is not created")
        return self.config

    def _running(self, what: str) -> Machine:
        self._created(what)
        if self._machine is None:
            raise Refused("internal", what, "VM is not running")
        return self._machine

    def _event(self, event: str, properties: dict[str, str] | None = None) -> None:
        self._monitor.event("vm", event, properties)

    def _name(self, kind: str, device: Config) -> None:
        """Give a device an id, as the first free number makes it."""
        if device.get("id"):
            return
        prefix = configs.NAMES.get(kind, f"_{kind}")
        while True:
            name = f"{prefix}{self._count}"
            self._count += 1
            if configs.find(self._created(""), name) is None:
                device["id"] = name
                return

    # -- life ----------------------------------------------------------------------------

    def create(self, given: Config) -> None:
        """Take a configuration.

        Raises:
            Refused: there is one already, or it is invalid.
        """
        if self.config is not None:
            raise Refused("internal", "The VM could not be created", "VM is already created")
        config = configs.complete(given)
        for net in config.get("net", ()):
            net.pop("fds", None)
        self.config = config
        self._count = 0

    def boot(self) -> None:
        """Start the VM.

        Raises:
            Refused: no configuration, or it can't be made.
        """
        if self.config is None:
            raise Refused("missing", "The VM could not boot", "VM config is missing")
        if self._machine is not None:
            raise Refused("internal", "The VM could not boot", "already running")
        self._event("booting")
        self._machine = self._make(None)
        self._paused = False
        self._machine.start()
        self._event("booted")

    def _make(self, places: dict[str, int] | None) -> Machine:
        config = self._created("")
        for kind, name in configs.LISTS.items():
            for device in config.get(name, ()):
                self._name(kind, device)
                if kind == "net" and device["id"] in self._fds:
                    device["fds"] = self._fds[device["id"]]
        if config.get("vsock"):
            self._name("vsock", config["vsock"])
        return Machine(
            self._loop,
            config,
            on_event=self._qemu_event,
            on_exit=lambda status: self._loop.stop(1),
            places=places,
        )

    def shutdown(self) -> None:
        """Stop the VM hard; the configuration stays."""
        machine = self._running("The VM could not shutdown")
        machine.close()
        self._machine = None
        self._event("shutdown")

    def delete(self) -> None:
        """Forget the VM."""
        if self.config is None:
            return
        if self._machine is not None:
            self.shutdown()
        self.config = None
        for fds in self._fds.values():
            for fd in fds:
                os.close(fd)
        self._fds = {}
        self._event("deleted")

    def end(self) -> None:
        """End the VM and the process."""
        self.delete()
        self._monitor.event("vmm", "shutdown")
        self._loop.after(0, lambda: self._loop.stop(0))

    def close(self) -> None:
        """Kill what runs for us."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    def reboot(self) -> None:
        """Make the VM anew of its configuration; the process stays."""
        machine = self._running("The VM could not reboot")
        self._event("rebooting")
        machine.close()
        self._machine = self._make(None)
        self._paused = False
        self._machine.start()
        self._event("rebooted")

    def pause(self) -> None:
        """Stop CPUs and devices."""
        machine = self._running("The VM could not be paused")
        if self._paused:
            raise Refused("internal", "The VM could not be paused", "Invalid state")
        self._event("pausing")
        machine.freeze()
        self._paused = True
        self._event("paused")

    def resume(self) -> None:
        """Go on."""
        machine = self._running("The VM could not be resumed")
        if not self._paused:
            raise Refused("internal", "The VM could not resume", "Invalid state")
        self._event("resuming")
        machine.thaw()
        self._paused = False
        self._event("resumed")

    def power_button(self) -> None:
        """Press it."""
        self._running("Failed to press the power button").qemu.execute("system_powerdown")

    def nmi(self) -> None:
        """Interrupt the guest."""
        self._running("Failed to inject NMI").qemu.execute("inject-nmi")

    def _qemu_event(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "SHUTDOWN" if data.get("reason") == "guest-reset":
                self._loop.after(0, self._guest_reset)
            case "SHUTDOWN" if data.get("reason") == "guest-shutdown":
                self._loop.after(0, self._guest_off)
            case "GUEST_PANICKED":
                self._monitor.event("guest", "panic")
            case "DEVICE_DELETED" if "device" in data and self._machine is not None:
                gone = self._machine.finish_removal(data["device"])
                if gone is not None:
                    self._drop_fds(gone[0])
                    self._event("device-removed", {"id": gone[0], "bdf": gone[1]})

    def _guest_reset(self) -> None:
        if self._machine is not None:
            self.reboot()

    def _guest_off(self) -> None:
        if self._machine is None:
            return
        if self._no_shutdown:
            self.shutdown()
        else:
            self.end()

    def _drop_fds(self, identity: str) -> None:
        for fd in self._fds.pop(identity, ()):
            os.close(fd)

    def terminal(self) -> Qemu | None:
        """Return the QEMU that standard input is for, if it is for one."""
        if self._machine is None or self.config is None:
            return None
        modes = (self.config["serial"]["mode"], self.config["console"]["mode"])
        return self._machine.qemu if "Tty" in modes else None

    # -- looking -------------------------------------------------------------------------

    def info(self) -> Config:
        """Describe the VM."""
        config = copy.deepcopy(self._created("The VM info is not available"))
        machine = self._machine
        answer: Config = {"config": config, "state": "Created", "memory_actual_size": 0}
        answer["device_tree"] = None
        answer["memory_actual_size"] = config["memory"]["size"]
        if machine is None:
            return answer
        answer["state"] = "Paused" if self._paused else "Running"
        answer["memory_actual_size"] = machine.memory_actual()
        for name, label in (("serial", "serial"), ("console", "hvc")):
            if config[name]["mode"] == "Pty":
                config[name]["file"] = machine.pty(label)
        tree: dict[str, Config] = {}
        for identity in machine.slots:
            outer = f"_virtio-pci-{identity}"
            tree[outer] = _node(outer, machine.bdf(identity), [identity])
            tree[identity] = _node(identity, None, [])
        answer["device_tree"] = tree
        return answer

    def counters(self) -> Config:
        """Return the devices' counters."""
        return self._running("The VM counters are not available").counters()

    # -- devices -------------------------------------------------------------------------

    def add(self, kind: str, device: Config, fds: list[int]) -> Config | None:
        """Add a device.

        Args:
            kind: as in ``vm.add-…``.
            device: its configuration.
            fds: received ones; kept ones are taken off the list.

        Returns:
            Its id and address, or None when the VM has not booted yet.

        Raises:
            Refused: it can't be added.
        """
        what = "The device could not be added to the VM"
        config = self._created(what)
        device = dict(device) if kind == "vsock" else configs.add_defaults(kind, device)
        device.pop("fds", None)
        if kind == "net" and fds:
            device["fds"] = list(fds)
        if kind == "vsock":
            if config.get("vsock"):
                raise Refused("internal", what, "Too many vsock devices")
        else:
            configs.check_new(config, kind, device)
        if self._machine is not None:
            configs.check_landlock(config, _paths(device))
        self._name(kind, device)
        if self._machine is not None:
            self._machine.plug(kind, device)
        if kind == "net" and fds:
            self._fds[device["id"]] = list(fds)
            fds.clear()
        if kind == "vsock":
            config["vsock"] = device
        else:
            config[configs.LISTS[kind]] = [*config.get(configs.LISTS[kind], ()), device]
        if self._machine is None:
            return None
        return {"id": device["id"], "bdf": self._machine.bdf(device["id"])}

    def remove(self, identity: str) -> None:
        """Ask the guest to let a device go; without a running VM it is gone at once.

        Raises:
            Refused: there is none of that id.
        """
        what = "The device could not be removed from the VM"
        config = self._created(what)
        known = configs.find(config, identity) is not None
        if self._machine is None:
            if not known:
                raise Refused("unknown_id", what, f"No device: {identity}")
            configs.drop(config, identity)
            self._drop_fds(identity)
            return
        if identity not in self._machine.slots or identity.startswith("__"):
            raise Refused("unknown_id", what, f"Unknown device id: {identity}")
        self._machine.request_removal(identity)
        configs.drop(config, identity)

    def resize(self, request: Config) -> None:
        """Change CPUs, memory and balloon."""
        config = self._created("The VM could not be resized")
        vcpus, ram = request.get("desired_vcpus"), request.get("desired_ram")
        balloon = request.get("desired_balloon")
        machine = self._machine
        if machine is None:
            config["cpus"]["boot_vcpus"] = vcpus or config["cpus"]["boot_vcpus"]
            config["memory"]["size"] = ram or config["memory"]["size"]
            return
        self._event("resizing")
        if vcpus is not None:
            machine.set_vcpus(vcpus)
            config["cpus"]["boot_vcpus"] = vcpus
        if ram is not None:
            machine.set_memory(ram)
            # What counts when the guest is rebooted, whatever it did with the request.
            if config["memory"]["hotplug_method"] == "VirtioMem":
                config["memory"]["hotplugged_size"] = ram - config["memory"]["size"]
            else:
                config["memory"]["size"] = ram
        if balloon is not None:
            if not config.get("balloon"):
                raise Refused("internal", "There is no balloon device")
            machine.set_balloon(balloon)
            config["balloon"]["size"] = balloon
        self._event("resized")

    def resize_disk(self, request: Config) -> None:
        """Change a disk's size."""
        what = "The disk could not be resized"
        machine = self._running(what)
        if all(disk["id"] != request["id"] for disk in machine.config.get("disks", ())):
            raise Refused("unknown_id", what, f"Unknown device id: {request['id']}")
        machine.resize_disk(request["id"], request["desired_size"])

    # -- snapshots -----------------------------------------------------------------------

    def snapshot(self, url: str) -> None:
        """Save the paused VM into a directory that exists."""
        what = "The VM could not be snapshotted"
        machine = self._running(what)
        if not self._paused:
            raise Refused("internal", what, "VM is not paused")
        directory = _directory(url, what)
        for name in ("fs", "devices"):
            if machine.config.get(name):
                raise Refused("internal", what, f"stand-in: QEMU can't save {name}")
        self._event("snapshotting")
        try:
            memory = directory / "memory-ranges"
            memory.touch()
            (directory / "config.json").write_text(json.dumps(self.config, indent=1))
            (directory / "state.json").write_text(json.dumps({"places": machine.slots}))
            machine.save(memory)
        except (OSError, QmpError) as error:
            raise Refused("internal", what, str(error)) from error
        # A device of QEMU's that has been saved has lost its daemon: it goes on as a copy.
        machine.close()
        try:
            self._machine = self._make(machine.slots)
            self._machine.qemu.load(memory)
        except (OSError, QmpError, Refused) as error:
            self._loop.after(0, lambda: self._loop.stop(1))
            raise Refused("internal", what, f"stand-in: the VM can't go on: {error}") from error
        self._event("snapshotted")

    def restore(self, request: Config, fds: list[int]) -> None:
        """Make a VM of a snapshot."""
        what = "The VM could not be restored"
        if self.config is not None:
            raise Refused("internal", what, "VM is already created")
        wanted = sum(net["num_fds"] for net in request.get("net_fds", ()))
        if len(fds) != wanted:
            raise Refused("bad_request", "Bad Request")
        directory = _directory(request["source_url"], what)
        self._event("restoring")
        try:
            self.config = json.loads((directory / "config.json").read_text())
            state = json.loads((directory / "state.json").read_text())
            _check_net_fds(self.config, request)
            for net in request.get("net_fds", ()):
                self._fds[net["id"]] = [fds.pop(0) for _ in range(net["num_fds"])]
            self._machine = self._make(state["places"])
            self._machine.qemu.load(directory / "memory-ranges")
        except (OSError, ValueError, KeyError, QmpError, Refused) as error:
            self.close()
            self.config = None
            raise Refused("internal", what, str(error)) from error
        self._paused = True
        self._event("restored")
        if request.get("resume"):
            self.resume()


def _node(identity: str, bdf: str | None, children: list[str]) -> Config:
    return {"id": identity, "resources": [], "parent": None, "children": children, "pci_bdf": bdf}


def _paths(device: Config) -> list[str]:
    names = ("path", "socket", "file", "vhost_socket")
    return [device[name] for name in names if device.get(name)]


def _check_net_fds(config: Config, request: Config) -> None:
    """Raise unless each card that had descriptors, and no other, gets as many again."""
    given = {net["id"]: net["num_fds"] for net in request.get("net_fds", ())}
    for net in config.get("net", ()):
        wanted = len(net.get("fds") or ())
        found = given.pop(net["id"], None)
        if wanted and found is None:
            raise configs.invalid(f"Net id {net['id']} is associated with FDs and is required")
        if wanted != (found or 0):
            raise configs.invalid(
                f"Number of Net FDs passed for '{net['id']}' during Restore: {found}. "
                f"Expected: {wanted}"
            )
    if given:
        raise configs.invalid(f"Net id {min(given)} is not in the snapshot")


def _directory(url: str, what: str) -> Path:
    if not url.startswith("file://"):
        raise Refused("internal", what, f"Invalid URL: {url}")
    path = Path(url.removeprefix("file://"))
    if not path.is_dir():
        raise Refused("internal", what, f"No such directory: {path}")
    return path
