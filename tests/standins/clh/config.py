"""A VM's configuration: defaults, ids and what makes it invalid."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

from tests.standins.clh.errors import Refused

Config = dict[str, Any]

LISTS = {
    "disk": "disks",
    "net": "net",
    "fs": "fs",
    "pmem": "pmem",
    "device": "devices",
}
"""Lists of devices by the name used in ``vm.add-…``."""

NAMES = {"disk": "_disk", "net": "_net", "fs": "_fs", "pmem": "_pmem", "device": "_vfio"}
_DEFAULTS: dict[str, Config] = {
    "disk": {"readonly": False, "direct": False, "num_queues": 1, "queue_size": 128},
    "net": {"num_queues": 2, "queue_size": 256},
    "fs": {"num_queues": 1, "queue_size": 1024},
    "pmem": {"discard_writes": False},
    "device": {},
}
_QUEUE_MAX = 32768
_MTU_MIN = 1280
_SERIAL_MAX = 20
_PMEM_ALIGN = 2 << 20


def invalid(text: str) -> Refused:
    """Return the refusal of a configuration."""
    return Refused("config", "The VM could not be created", text)


def complete(given: Config) -> Config:
    """Return a configuration with defaults filled in.

    Raises:
        Refused: it is invalid.
    """
    config = copy.deepcopy(given)
    config.setdefault("cpus", {"boot_vcpus": 1, "max_vcpus": 1})
    memory = {
        "size": 512 << 20,
        "hotplug_method": "Acpi",
        "shared": False,
        "hugepages": False,
        **config.get("memory", {}),
    }
    config["memory"] = memory
    config.setdefault("rng", {"src": "/dev/urandom"})
    config.setdefault("serial", {"mode": "Null"})
    config.setdefault("console", {"mode": "Tty"})
    for kind, name in LISTS.items():
        if name in config:
            config[name] = [{**_DEFAULTS[kind], **device} for device in config[name]]
    _validate(config)
    return config


def _validate(config: Config) -> None:
    cpus, memory, payload = config["cpus"], config["memory"], config["payload"]
    if not any(payload.get(name) for name in ("kernel", "firmware", "igvm")):
        raise invalid("Payload configuration is not bootable")
    if cpus["max_vcpus"] < cpus["boot_vcpus"]:
        raise invalid(f"Max CPUs ({cpus['max_vcpus']}) lower than boot CPUs ({cpus['boot_vcpus']})")
    topology = cpus.get("topology")
    if topology:
        product = 1
        for part in ("threads_per_core", "cores_per_die", "dies_per_package", "packages"):
            product *= topology.get(part, 1)
        if product != cpus["max_vcpus"]:
            raise invalid("Product of CPU topology parts does not match maximum vCPU")
    if memory.get("zones") and memory["size"]:
        raise invalid("Memory zones need a memory size of 0")
    for name in ("serial", "console"):
        mode = config[name]["mode"]
        if mode in ("File", "Socket") and not config[name].get(mode.lower()):
            raise invalid(f"Path missing when using {mode.lower()} console mode")
    if config["serial"]["mode"] == config["console"]["mode"] == "Tty":
        raise invalid("Double TTY mode")
    balloon = config.get("balloon")
    if balloon and balloon["size"] >= memory["size"]:
        raise invalid(f"Balloon size ({balloon['size']}) greater than RAM ({memory['size']})")
    if (config.get("vsock") or {}).get("cid", 3) < 3:
        raise invalid(f"{config['vsock']['cid']} is a special VSOCK CID")
    for kind, name in LISTS.items():
        for device in config.get(name, ()):
            check_device(config, kind, device)
    names = list(_ids(config))
    for name in names:
        if names.count(name) > 1:
            raise Refused("duplicate", f"Identifier {name} is not unique")


def add_defaults(kind: str, device: Config) -> Config:
    """Return a device with defaults filled in."""
    return {**_DEFAULTS[kind], **device}


def check_new(config: Config, kind: str, device: Config) -> None:
    """Check a device that is to be added.

    Raises:
        Refused: it is invalid, or its id or path is in use.
    """
    check_device(config, kind, device)
    if device.get("id") in set(_ids(config)):
        raise Refused("duplicate", f"Identifier {device['id']} is not unique")
    if kind == "device":
        paths = [other.get("path") for other in config.get("devices", ())]
        if device.get("path") in paths:
            text = f"Duplicated device path: {device['path']}"
            raise Refused("duplicate", text)


def _ids(config: Config) -> Iterator[str]:
    for name in LISTS.values():
        for device in config.get(name, ()):
            if device.get("id"):
                yield device["id"]
    for name in ("vsock", "balloon", "console", "rng"):
        if (config.get(name) or {}).get("id"):
            yield config[name]["id"]


def check_device(config: Config, kind: str, device: Config) -> None:
    """Check a device against the VM it is for.

    Raises:
        Refused: it is invalid.
    """
    name = device.get("id", "")
    if name.startswith("__"):
        raise invalid(f"Identifier {name} is not invalid")
    if device.get("pci_segment", 0):
        raise Refused("internal", "stand-in: PCI segment 0 is the only one")
    shared = config["memory"].get("shared") or config["memory"].get("hugepages")
    if (kind == "fs" or device.get("vhost_user")) and not shared:
        raise invalid("Using vhost-user requires using shared memory or huge pages")
    size = device.get("queue_size", 1)
    if size & (size - 1) or not 0 < size <= _QUEUE_MAX:
        raise invalid(f"Queue size must be a power of 2 no greater than {_QUEUE_MAX}: {size}")
    check = {"disk": _check_disk, "net": _check_net, "pmem": _check_pmem, "device": _check_vfio}
    if kind in check:
        check[kind](config, device)


def _check_disk(config: Config, device: Config) -> None:
    if device.get("vhost_socket") and device.get("path"):
        raise invalid("Disk path and vhost socket both provided")
    boot = config["cpus"]["boot_vcpus"]
    if device["num_queues"] > boot:
        raise invalid(f"Queue count ({device['num_queues']}) must not exceed boot vCPUs ({boot})")
    if len(device.get("serial", "")) > _SERIAL_MAX:
        length = len(device["serial"])
        raise invalid(f"Block device serial length ({length}) exceeds maximum allowed length (20)")


def _check_net(config: Config, device: Config) -> None:
    queues, boot = device["num_queues"], config["cpus"]["boot_vcpus"]
    if queues < 2:
        raise invalid(f"Number of queues ({queues}) to virtio_net should be higher than 2")
    fds = device.get("fds")
    if fds is not None:
        if any(fd <= 2 for fd in fds if isinstance(fd, int) and fd >= 0):
            raise invalid(f"Reserved fd number (<= 2): {fds}")
        if len(fds) * 2 != queues:
            raise invalid(
                f"Number of queues ({queues}) to virtio_net does not match the number of FDs "
                f"({len(fds)})"
            )
    if queues // 2 > boot:
        raise invalid(f"Queue count ({queues // 2}) must not exceed boot vCPUs ({boot})")
    if device.get("mtu", _MTU_MIN) < _MTU_MIN:
        raise invalid(
            f"Provided MTU {device['mtu']} is lower than 1280 (expected by VIRTIO specification)"
        )


def _check_pmem(config: Config, device: Config) -> None:
    try:
        size = device.get("size") or os.stat(device["file"]).st_size
    except OSError as error:
        raise Refused("internal", f"Cannot open pmem file: {error}") from error
    if not size or size % _PMEM_ALIGN:
        raise Refused("internal", "Pmem size not aligned to 2MiB")


def _check_vfio(config: Config, device: Config) -> None:
    if not device.get("path"):
        raise invalid("VFIO device config must specify `path=` or `fd=`")


def check_landlock(config: Config, paths: list[str]) -> None:
    """Check that a hot-plugged device's paths are among those allowed at the start.

    Raises:
        Refused: the kernel would not let us open one.
    """
    if not config.get("landlock_enable"):
        return
    rules = [os.path.realpath(rule["path"]) for rule in config.get("landlock_rules", ())]
    for path in paths:
        real = os.path.realpath(path)
        if not any(real == rule or real.startswith(f"{rule}/") for rule in rules):
            raise Refused("internal", f"{path}: Permission denied (os error 13)")


def find(config: Config, identity: str) -> tuple[str, Config] | None:
    """Return the kind and configuration of a removable device."""
    for kind, name in LISTS.items():
        for device in config.get(name, ()):
            if device.get("id") == identity:
                return kind, device
    if (config.get("vsock") or {}).get("id") == identity:
        return "vsock", config["vsock"]
    return None


def drop(config: Config, identity: str) -> None:
    """Forget a device."""
    for name in LISTS.values():
        if name in config:
            config[name] = [d for d in config[name] if d.get("id") != identity]
    if (config.get("vsock") or {}).get("id") == identity:
        config["vsock"] = None
