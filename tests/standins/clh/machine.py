"""The VM behind a Cloud Hypervisor stand-in: QEMU's pc machine.

Its root bus hot-plugs by ACPI, as Cloud Hypervisor's does: the guest sees a new device
without looking, and a removed one is gone when the guest has let it go.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.standins.clh import recipes
from tests.standins.clh.config import LISTS, Config
from tests.standins.clh.errors import Refused
from tests.standins.clh.recipes import Recipe, qemu_id
from tests.standins.qemu import Qemu, QmpError
from tests.standins.server import Loop
from tests.standins.vsock import VsockBackend
from vmm.qemu.tsc import host_tsc_khz

MIB = 1 << 20
_SLOTS = range(2, 32)  # QEMU's host bridge and chipset have the first two
_ADDRESS_SPACE = 64 << 30
_DIMM_SLOTS = 16
_DIMM_ALIGN = 128 * MIB
_CPU_DOWN = (10, 0)
_VSOCK_LOOK = 0.05


class Machine:
    """One boot of a VM.

    Args:
        loop: what watches QEMU.
        config: complete, every device with an id.
        on_event: called with QEMU's events.
        on_exit: called when QEMU ended by itself.
        places: slots by id that devices must get, from a snapshot; then QEMU waits for its
            state.

    Raises:
        Refused: it can't be made.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        *,
        on_event: Callable[[str, dict[str, Any]], None],
        on_exit: Callable[[int], None],
        places: dict[str, int] | None = None,
    ) -> None:
        self._loop = loop
        self.config = config
        self.slots: dict[str, int] = {}
        self._wanted = places or {}
        self._stopped = places is not None
        self._recipes: dict[str, Recipe] = {}
        self._dimms = 0
        self.ram = self._boot_ram = config["memory"]["size"]
        self._cpus_going: set[str] = set()
        try:
            arguments = self._arguments()
            if places is not None:
                arguments += ["-incoming", "defer"]
            fds = [fd for recipe in self._recipes.values() for fd in recipe.fds]
            self.qemu = Qemu(
                loop,
                arguments,
                fds=fds,
                on_console=_to_stdout,
                on_event=on_event,
                on_exit=on_exit,
            )
        except QmpError as error:
            self._close_recipes()
            raise Refused("internal", "The VM could not boot", str(error)) from error
        except BaseException:
            self._close_recipes()
            raise
        for disk in config.get("disks", ()):
            self._throttle(disk)

    def start(self) -> None:
        """Let the guest run."""
        self.qemu.execute("cont")
        self._await_vsock()
        if (self.config.get("balloon") or {}).get("size"):
            self.set_balloon(self.config["balloon"]["size"])

    def close(self) -> None:
        """Kill it; vsock sockets go with their device."""
        self.qemu.close()
        self._close_recipes()

    def _close_recipes(self) -> None:
        for recipe in self._recipes.values():
            _close(recipe)
        self._recipes = {}

    # -- the command line ------------------------------------------------------------

    def _arguments(self) -> list[str]:
        config = self.config
        cpus, memory = config["cpus"], config["memory"]
        size, hot = memory["size"] // MIB, memory.get("hotplug_size", 0) // MIB
        limit = f"slots={_DIMM_SLOTS},maxmem={size + hot + (_ADDRESS_SPACE // MIB)}M"
        ram = f"memory-backend-memfd,id=mem,size={size}M,share=on"
        count = cpus["max_vcpus"]
        smp = f"cpus={cpus['boot_vcpus']},maxcpus={count},sockets=1,cores={count},threads=1"
        arguments = [
            *("-M", "pc,memory-backend=mem,vmport=off,usb=off"),
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", smp),
            *("-m", f"size={size}M,{limit}", "-object", ram),
            *("-action", "reboot=shutdown,shutdown=pause,panic=none"),
            *self._kernel(),
            *self._consoles(),
        ]
        for kind in ("disk", "net"):
            arguments += self._cold(kind)
        arguments += ["-object", "rng-builtin,id=entropy"]
        arguments += self._simple("__rng", {"driver": "virtio-rng-pci", "rng": "entropy"})
        for kind in ("fs", "pmem"):
            arguments += self._cold(kind)
        if config.get("vsock"):
            arguments += self._add(
                recipes.vsock(config["vsock"], self._loop), config["vsock"]["id"]
            )
        if hot and memory["hotplug_method"] == "VirtioMem":
            backend = f"memory-backend-memfd,id=hotmem,size={hot}M,share=on,reserve=off"
            mem: dict[str, Any] = {"driver": "virtio-mem-pci", "memdev": "hotmem"}
            mem["requested-size"] = memory.get("hotplugged_size", 0)
            arguments += ["-object", backend, *self._simple("__mem", mem)]
        if config.get("balloon"):
            front: dict[str, Any] = {"driver": "virtio-balloon-pci"}
            for name in ("deflate_on_oom", "free_page_reporting"):
                front[name.replace("_", "-")] = bool(config["balloon"].get(name))
            arguments += self._simple("__balloon", front)
        if config.get("pvpanic"):
            arguments += self._simple("__pvpanic", {"driver": "pvpanic-pci"})
        return [*arguments, *self._cold("device")]

    def _kernel(self) -> list[str]:
        payload = self.config["payload"]
        if not payload.get("kernel"):
            raise Refused("internal", "stand-in: only kernels are booted")
        arguments = []
        for name, option in (("kernel", "-kernel"), ("initramfs", "-initrd")):
            if path := payload.get(name):
                if not os.access(path, os.R_OK):
                    text = f"Cannot open {name} file: No such file or directory (os error 2)"
                    raise Refused("internal", "The VM could not boot", text)
                arguments += [option, path]
        # Emulation: a guest on a busy host fails to measure its clock.
        line = f"{payload.get('cmdline') or ''} tsc_early_khz={host_tsc_khz()}"
        return [*arguments, "-append", line]

    def _consoles(self) -> list[str]:
        arguments = []
        serial, console = self.config["serial"], self.config["console"]
        if serial["mode"] not in ("Off", "Null"):
            name, chardev = _chardev("serial", serial)
            arguments += [*chardev, "-serial", f"chardev:{name}"]
        if console["mode"] != "Off":
            name, chardev = _chardev("hvc", console)
            controller = {"driver": "virtio-serial-pci", "max_ports": 1}
            arguments += [*chardev, *self._simple("__console", controller)]
            arguments += ["-device", f"virtconsole,chardev={name}"]
        return arguments

    def pty(self, name: str) -> str | None:
        """Return the pty of ``serial`` or ``hvc``."""
        for chardev in self.qemu.execute("query-chardev"):
            if chardev["label"] == f"chr-{name}":
                return str(chardev["filename"]).removeprefix("pty:")
        return None

    def _cold(self, kind: str) -> list[str]:
        arguments: list[str] = []
        for device in self.config.get(LISTS[kind], ()):
            arguments += self._add(recipes.BUILDERS[kind](device), device["id"])
        return arguments

    def _add(self, recipe: Recipe, identity: str) -> list[str]:
        self._recipes[identity] = recipe
        return recipes.cold_arguments(recipe, self._place(identity))

    def _simple(self, identity: str, front: dict[str, Any]) -> list[str]:
        recipe = Recipe(qemu_id(identity), [], front)
        return recipes.cold_arguments(recipe, self._place(identity))

    def _place(self, identity: str, wanted: int | None = None) -> dict[str, Any]:
        used = set(self.slots.values()) | set(self._wanted.values())
        slot = self._wanted.get(identity, wanted)
        if slot is None:
            slot = next((slot for slot in _SLOTS if slot not in used), None)
        if slot is None:
            raise Refused("internal", "No PCI device slot available")
        self.slots[identity] = slot
        return {"bus": "pci.0", "addr": f"{slot:02x}"}

    def bdf(self, identity: str) -> str:
        """Return a device's address, as the guest has it."""
        return f"0000:00:{self.slots[identity]:02x}.0"

    # -- hot-plug ----------------------------------------------------------------------

    def plug(self, kind: str, device: Config) -> None:
        """Add a device.

        Raises:
            Refused: it can't be made.
        """
        identity = device["id"]
        recipe = (
            recipes.vsock(device, self._loop) if kind == "vsock" else recipes.BUILDERS[kind](device)
        )
        done = []
        try:
            place = self._place(identity)
            names = {f"@{i}": self.qemu.give_fd(fd) for i, fd in enumerate(recipe.fds)}
            for index, backend in enumerate(recipe.backends):
                command, arguments = recipes.with_fds(backend, names)
                self.qemu.run(command, arguments)
                done.append(index)
            self.qemu.run("device_add", {**recipe.front, "id": recipe.name, **place})
        except (QmpError, Refused) as error:
            for command, arguments in recipe.undo[: len(done)]:
                with suppress(QmpError):
                    self.qemu.run(command, arguments)
            self.slots.pop(identity, None)
            _close(recipe)
            if isinstance(error, Refused):
                raise
            text = str(error)
            raise Refused("internal", "Could not add device", text) from error
        self._recipes[identity] = recipe
        if kind == "vsock":
            self._await_vsock()
        if kind == "disk":
            self._throttle(device)

    def request_removal(self, identity: str) -> None:
        """Ask the guest to let a device go."""
        with suppress(QmpError):  # asked for already
            self.qemu.execute("device_del", id=qemu_id(identity))

    def finish_removal(self, name: str) -> tuple[str, str] | None:
        """Release what belonged to a device that is gone; returns its id and address."""
        self._cpus_going.discard(name)
        identity = next((i for i in self._recipes if qemu_id(i) == name), None)
        if identity is None:
            return None
        recipe = self._recipes.pop(identity)
        for command, arguments in recipe.undo:
            with suppress(QmpError):
                self.qemu.run(command, arguments)
        _close(recipe)
        address = self.bdf(identity)
        del self.slots[identity]
        return identity, address

    def _throttle(self, disk: Config) -> None:
        limits = recipes.throttle(disk)
        if limits is not None:
            path = f"/machine/peripheral/{qemu_id(disk['id'])}/virtio-backend"
            self.qemu.run("block_set_io_throttle", {"id": path, **limits})

    def resize_disk(self, identity: str, size: int) -> None:
        """Change a disk's size and tell the guest."""
        self.qemu.execute("block_resize", node_name=f"{qemu_id(identity)}-n", size=size)

    # -- CPUs and memory ---------------------------------------------------------------

    def vcpus(self) -> int:
        """Return how many there are now."""
        return len(self.qemu.execute("query-cpus-fast"))

    def set_vcpus(self, count: int) -> None:
        """Add CPUs, or ask the guest to let some go.

        Raises:
            Refused: more than the VM may have; or a former removal is not done.
        """
        slots = self.qemu.execute("query-hotpluggable-cpus")
        # An emulated CPU goes without an event.
        there = {slot["qom-path"].rpartition("/")[2] for slot in slots if "qom-path" in slot}
        self._cpus_going &= there
        present = sum("qom-path" in slot for slot in slots)
        if self._cpus_going:
            raise Refused("busy", "Too Many Requests")
        if count > len(slots):
            raise Refused("internal", f"Desired vCPUs over maximum {len(slots)}")
        free = [slot for slot in reversed(slots) if "qom-path" not in slot]
        for slot in free[: max(0, count - present)]:
            name = f"cpu{slot['props']['core-id']}"
            self.qemu.run("device_add", {"driver": slot["type"], "id": name, **slot["props"]})
        if count < present:
            if self.qemu.version < _CPU_DOWN:
                text = "stand-in: QEMU before 10 can't take an emulated CPU away"
                raise Refused("internal", text)
            named = [s["qom-path"].rpartition("/")[2] for s in slots if "qom-path" in s]
            hot = [name for name in named if name.startswith("cpu")]
            for name in hot[: present - count]:
                self._cpus_going.add(name)
                self.qemu.execute("device_del", id=name)

    def set_memory(self, size: int) -> None:
        """Change the memory the guest may have; with ACPI it only grows while it runs.

        Raises:
            Refused: a size that the method does not allow.
        """
        memory = self.config["memory"]
        boot, limit = self._boot_ram, memory.get("hotplug_size", 0)
        if memory["hotplug_method"] == "VirtioMem":
            if size < boot:
                text = f"Desired memory size {size} is below the boot size {boot}"
                raise Refused("internal", text)
            if size > boot + limit:
                raise Refused("internal", "Failed to resize virtio-mem")
            self.qemu.execute(
                "qom-set",
                path=f"/machine/peripheral/{qemu_id('__mem')}",
                property="requested-size",
                value=size - boot,
            )
            return
        more = size - self.ram
        if more <= 0:
            return
        if more % _DIMM_ALIGN or self.ram + more > boot + limit:
            raise Refused("internal", "Insufficient hotplug memory, or not 128 MiB")
        self._dimms += 1
        name = f"dimm{self._dimms}"
        backend = {"qom-type": "memory-backend-memfd", "id": f"{name}-m", "size": more}
        self.qemu.run("object-add", {**backend, "share": True})
        self.qemu.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-m")
        self.ram = size

    def set_balloon(self, size: int) -> None:
        """Take memory from the guest, or give it back."""
        self.qemu.execute("balloon", value=max(self.ram - size, MIB))

    def memory_actual(self) -> int:
        """Return the bytes the guest has."""
        if not self.config.get("balloon"):
            return int(self.ram)
        return int(self.qemu.execute("query-balloon")["actual"])

    # -- vsock and counters ------------------------------------------------------------

    def freeze(self) -> None:
        """Stop CPUs and devices."""
        # QEMU's own stop takes the queues from the vsock daemon, which does not stand that.
        daemons = self._daemons()
        self._stopped = not daemons
        if not daemons:
            self.qemu.execute("stop")
            return
        self.qemu.freeze()
        for daemon in daemons:
            daemon.freeze()

    def thaw(self) -> None:
        """Go on."""
        if self._stopped:
            self.qemu.execute("cont")
            self._await_vsock()
            return
        for daemon in self._daemons():
            daemon.thaw()
        self.qemu.thaw()

    def save(self, path: Path) -> None:
        """Write memory and devices of the paused VM; it can't go on then.

        Raises:
            QmpError: QEMU can't.
            OSError: the file can't be made.
        """
        if not self._stopped:
            for daemon in self._daemons():
                daemon.thaw()
            self.qemu.wake_stopped()
            self._stopped = True
        self.qemu.save(path)

    def _daemons(self) -> list[VsockBackend]:
        return [r.vsock for r in self._recipes.values() if r.vsock is not None]

    def _await_vsock(self) -> None:
        """Let hosts through to the guest once its vsock driver is up."""
        try:
            if not self._daemons():
                return
            if not self.qemu.vsock_started():
                self._loop.after(_VSOCK_LOOK, self._await_vsock)
                return
        except QmpError:
            return  # it ended
        for daemon in self._daemons():
            daemon.connect_guest()

    def counters(self) -> dict[str, dict[str, int]]:
        """Return what disks have read and written."""
        found: dict[str, dict[str, int]] = {}
        by_node = {f"{qemu_id(disk['id'])}-n": disk["id"] for disk in self.config.get("disks", ())}
        for entry in self.qemu.execute("query-blockstats"):
            if entry.get("node-name") in by_node:
                stats = entry["stats"]
                found[by_node[entry["node-name"]]] = {
                    "read_bytes": stats["rd_bytes"],
                    "read_ops": stats["rd_operations"],
                    "write_bytes": stats["wr_bytes"],
                    "write_ops": stats["wr_operations"],
                }
        return found


def _chardev(name: str, config: Config) -> tuple[str, list[str]]:
    match config["mode"]:
        case "Tty":
            return "console", []
        case "Null":
            text = "null"
        case "Pty":
            text = "pty"
        case "File":
            text = f"file,path={config['file'].replace(',', ',,')}"
        case _:
            text = f"socket,path={config['socket'].replace(',', ',,')},server=on,wait=off"
    kind, comma, rest = text.partition(",")
    return f"chr-{name}", ["-chardev", f"{kind},id=chr-{name}{comma}{rest}"]


def _close(recipe: Recipe) -> None:
    recipe.close()
    if recipe.vsock is not None:
        with suppress(OSError):
            os.unlink(recipe.vsock.uds)


def _to_stdout(data: bytes) -> None:
    with suppress(OSError):
        while data:
            data = data[os.write(1, data) :]
