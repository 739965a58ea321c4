"""The life of a microVM: what may be done before its start and what after."""

from __future__ import annotations

import os
from typing import Any

from tests.standins.fc import resources as res
from tests.standins.fc import snapshot
from tests.standins.fc.fault import POST_BOOT, PRE_BOOT, Fault
from tests.standins.fc.microvm import MicroVm
from tests.standins.fc.resources import Config, Resources
from tests.standins.fc.telemetry import Console, Log, Metrics, open_output
from tests.standins.qemu import QmpError
from tests.standins.server import Loop

_FLUSH_INTERVAL_S = 60.0
_LISTS = {"drive": "drives", "net": "nets", "pmem": "pmems"}


class Controller:
    """Does what the API asks for.

    Args:
        loop: what everything runs on.
        version: of Firecracker.
        instance: id of the microVM.
        pci: whether PCI was enabled.
    """

    def __init__(self, loop: Loop, version: str, instance: str, *, pci: bool) -> None:
        self.version = version
        self._numbers = tuple(int(part) for part in version.split(".")[:3])
        self._loop = loop
        self._instance = instance
        self._pci = pci
        self.resources = Resources()
        self.vm: MicroVm | None = None
        self._log = Log(instance)
        self._metrics = Metrics()
        self._console = Console()

    # -- before and after ----------------------------------------------------------------

    def _running(self) -> MicroVm:
        if self.vm is None:
            raise Fault(PRE_BOOT)
        return self.vm

    def _not_started(self) -> Resources:
        if self.vm is not None:
            raise Fault(POST_BOOT)
        return self.resources

    def configure(self, method: str, config: Config) -> None:
        """Call a method of the resources that ends the time for loading a snapshot."""
        resources = self._not_started()
        resources.configured = True
        getattr(resources, method)(config)

    def put_vsock(self, config: Config) -> None:
        """Add the vsock device."""
        resources = self._not_started()
        resources.configured = True
        resources.put_vsock(config, self._loop)

    def set_part(self, name: str, config: Config, *, configures: bool = True) -> None:
        """Set a part that needs no checks."""
        resources = self._not_started()
        resources.configured |= configures
        setattr(resources, name, config)

    def set_machine(self, config: Config) -> None:
        """Change the machine."""
        self.configure("set_machine", config)

    # -- whole VM ------------------------------------------------------------------------

    def info(self) -> Config:
        """Describe the instance."""
        state = "Not started" if self.vm is None else "Paused" if self.vm.paused else "Running"
        return {
            "id": self._instance,
            "state": state,
            "vmm_version": self.version,
            "app_name": "Firecracker",
        }

    def start(self) -> None:
        """Boot."""
        resources = self._not_started()
        if resources.boot is None:
            raise Fault("Cannot start microvm without kernel configuration.")
        self._open_serial()
        vm = self._make_vm()
        vm.start()
        self.vm = vm

    def _open_serial(self) -> None:
        path = (self.resources.serial or {}).get("serial_out_path")
        if path:
            self._console.fd = open_output(path, self._numbers, "Unable to open serial output")

    def _make_vm(self, places: dict[str, int] | None = None) -> MicroVm:
        vm = MicroVm(
            self._loop,
            self.resources,
            self._numbers,
            pci=self._pci,
            on_console=self._console.write,
            on_exit=self.exit,
            places=places,
        )
        self._loop.after(_FLUSH_INTERVAL_S, self._flush_regularly)
        return vm

    def exit(self, code: int) -> None:
        """End the process, as after a guest's reset."""
        self._metrics.flush(self._counters())
        self.log("Info", f"Firecracker exiting. exit_code={code}")
        self._loop.stop(code)

    def close(self) -> None:
        """Kill what runs for us."""
        if self.vm is not None:
            self.vm.qemu.close()
        if self.resources.vsock is not None:
            self.resources.vsock.close()

    def set_state(self, state: str) -> None:
        """Pause or resume."""
        vm = self._running()
        if state == "Paused":
            vm.pause()
        else:
            vm.resume()

    def send_ctrl_alt_del(self) -> None:
        """Press the keys."""
        self._running().send_ctrl_alt_del()

    def create_snapshot(self, config: Config) -> None:
        """Save the VM, which must be paused."""
        vm = self._running()
        if not vm.paused:
            raise Fault("Create snapshot error: save/restore of a VM that is not paused")
        snapshot.save(vm, config, self.version)
        vm.qemu.close()
        try:
            self.resources.renew_vsock(self._loop)
            self.vm = self._make_vm(vm.places())
            self.vm.load(config["mem_file_path"])
        except (Fault, QmpError, OSError) as error:
            self._loop.after(0, lambda: self._loop.stop(1))
            raise Fault(f"stand-in: the saved VM can't go on: {error}") from error

    def load_snapshot(self, config: Config) -> None:
        """Make a VM of a snapshot; a failure ends the process."""
        resources = self._not_started()
        if resources.configured:
            raise Fault(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring "
                "boot-specific resources."
            )
        try:
            state = snapshot.read(config, self._numbers)
            snapshot.fill(resources, state, config, self._loop)
            vm = self.vm = self._make_vm(state["places"])
            vm.load(snapshot.memory_path(config))
            if config.get("resume_vm"):
                vm.resume()
        except (Fault, QmpError, OSError) as error:
            self._loop.after(0, lambda: self._loop.stop(1))
            raise Fault(f"Load snapshot error: {error}") from error

    # -- devices -------------------------------------------------------------------------

    def put_device(self, kind: str, config: Config, *, hot: bool) -> None:
        """Add a drive, net or pmem, before the start or while it runs."""
        if self.vm is None:
            self.configure(f"put_{kind}", config)
            return
        if not hot:
            raise Fault(POST_BOOT)
        identity = {"drive": "drive_id", "net": "iface_id", "pmem": "id"}[kind]
        if self._find(kind, config[identity]) is not None:
            raise Fault("A device with this ID already exists.")
        if not self._pci:
            raise Fault("PCI is not enabled. Device hotplug is only supported with PCI enabled.")
        if kind == "net":
            self.resources.check_mac(config)
        device = getattr(res, f"make_{kind}")(config)
        try:
            getattr(self.vm, f"plug_{kind}")(device)
        except Fault:
            os.close(device.fd)
            raise

    def _find(self, kind: str, identity: str) -> Any:
        devices = getattr(self.resources, _LISTS[kind])
        return next((device for device in devices if device.id == identity), None)

    def unplug(self, kind: str, identity: str) -> None:
        """Take a device away."""
        vm = self._running()
        if not self._pci:
            raise Fault("PCI is not enabled. Device hotplug is only supported with PCI enabled.")
        device = self._find(kind, identity)
        if device is None:
            raise Fault("Device not found.")
        if device.config.get("is_root_device") or device.config.get("root_device"):
            raise Fault("Cannot hot-unplug the root device.")
        getattr(vm, f"unplug_{kind}")(device)

    def patch_drive(self, config: Config) -> None:
        """Change a drive's file or limits."""
        vm = self._running()
        drive = self._find("drive", config["drive_id"])
        if drive is None:
            raise Fault(f"Unable to patch the block device: no device {config['drive_id']}")
        path, limiter = config.get("path_on_host"), config.get("rate_limiter")
        if (drive.fd < 0) != (path is None and limiter is None):
            raise Fault(
                "Unable to patch the block device: Running method expected different backend"
            )
        if path is not None:
            vm.swap_drive(drive, path)
        if limiter is not None:
            vm.limit_drive(drive, limiter)

    def patch_limits(self, kind: str, identity: str, config: Config) -> None:
        """Change the limits of an interface or pmem device."""
        self._running()
        device = next((d for d in getattr(self.resources, kind) if d.id == identity), None)
        if device is None:
            raise Fault(f"Cannot update device: no device {identity}")
        device.config.update(config)

    # -- memory --------------------------------------------------------------------------

    def balloon(self) -> Config:
        """Return the balloon's configuration."""
        if self.resources.balloon is None:
            raise Fault("Device not found: balloon")
        return self.resources.balloon

    def set_balloon(self, config: Config) -> None:
        """Inflate or deflate."""
        vm = self._running()
        balloon = self.balloon()
        if config["amount_mib"] > self.resources.machine["mem_size_mib"]:
            raise Fault("Error updating the balloon device configuration: too many pages")
        vm.set_balloon(config["amount_mib"])
        balloon["amount_mib"] = config["amount_mib"]

    def balloon_statistics(self) -> Config:
        """Return what the balloon holds."""
        vm = self._running()
        balloon = self.balloon()
        if not balloon["stats_polling_interval_s"]:
            raise Fault("Error getting the balloon statistics: statistics are not enabled")
        target, actual = balloon["amount_mib"], vm.balloon_mib()
        return {
            "target_pages": target * 256,
            "actual_pages": actual * 256,
            "target_mib": target,
            "actual_mib": actual,
        }

    def set_statistics_interval(self, config: Config) -> None:
        """Change the interval, unless that switches statistics on or off."""
        self._running()
        balloon = self.balloon()
        if bool(balloon["stats_polling_interval_s"]) != bool(config["stats_polling_interval_s"]):
            raise Fault("Statistics cannot be enabled/disabled after activation.")
        balloon.update(config)

    def memory_status(self) -> Config:
        """Return the hot-pluggable memory's state."""
        vm = self._running()
        if self.resources.memory_hotplug is None:
            raise Fault("Device not found: virtio-mem")
        return vm.memory_status()

    def request_memory(self, config: Config) -> None:
        """Ask for hot-pluggable memory; the answer does not wait for the guest."""
        vm = self._running()
        limits = self.resources.memory_hotplug
        if limits is None:
            raise Fault("Device not found: virtio-mem")
        size = config["requested_size_mib"]
        if size % limits["block_size_mib"] or size > limits["total_size_mib"]:
            raise Fault(f"Error updating the memory hotplug device: Invalid size {size}")
        vm.request_memory(size)

    # -- the rest ------------------------------------------------------------------------

    def put_mmds(self, data: Any) -> None:
        """Replace the metadata."""
        self.resources.mmds_data = data

    def patch_mmds(self, data: Any) -> None:
        """Merge into the metadata (RFC 7396)."""
        if self.resources.mmds_data is None:
            raise Fault("The MMDS data store is not initialized.")
        self.resources.mmds_data = _merge(self.resources.mmds_data, data)

    def set_logger(self, config: Config) -> None:
        """Change the log."""
        resources = self._not_started()
        if config.get("log_path"):
            self._log.fd = open_output(config["log_path"], self._numbers, "Logger")
        if config.get("level"):
            self._log.set_level(config["level"])
        resources.logger = config

    def set_metrics(self, config: Config) -> None:
        """Open the metrics file, once."""
        resources = self._not_started()
        if self._metrics.fd >= 0:
            raise Fault("Cannot initialize the metrics system: already initialized")
        self._metrics.fd = open_output(config["metrics_path"], self._numbers, "Metrics")
        resources.metrics = config

    def flush_metrics(self) -> None:
        """Write metrics now."""
        self._running()
        self._metrics.flush(self._counters())

    def _flush_regularly(self) -> None:
        if self.vm is not None and not self.vm.paused:
            self._metrics.flush(self._counters())
        self._loop.after(_FLUSH_INTERVAL_S, self._flush_regularly)

    def _counters(self) -> Config:
        if self.vm is None:
            return {}
        try:
            stats = self.vm.qemu.execute("query-blockstats")
        except QmpError:
            return {}
        names = self.vm.drive_names()
        return {
            f"block_{names[entry['node-name']]}": {
                "read_bytes": entry["stats"]["rd_bytes"],
                "write_bytes": entry["stats"]["wr_bytes"],
                "read_count": entry["stats"]["rd_operations"],
                "write_count": entry["stats"]["wr_operations"],
            }
            for entry in stats
            if entry.get("node-name") in names
        }

    def log(self, level: str, text: str) -> None:
        """Write to the log."""
        self._log.write(level, text)


def _merge(old: Any, new: Any) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    merged = {**old}
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(old.get(key), value)
    return merged
