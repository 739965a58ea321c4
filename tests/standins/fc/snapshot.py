"""Snapshots: the configuration as JSON in the state file, QEMU's migration in the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.standins.fc.fault import Fault
from tests.standins.fc.resources import Config, Resources
from tests.standins.qemu import QmpError
from tests.standins.server import Loop

if TYPE_CHECKING:
    from tests.standins.fc.microvm import MicroVm

FORMAT = "standin-snapshot-1"


def save(vm: MicroVm, config: Config, version: str) -> None:
    """Write both files.

    Raises:
        Fault: a file can't be written, or QEMU can't.
    """
    if config.get("snapshot_type") == "Diff":
        raise Fault("stand-in: diff snapshots are not played")
    state: Config = {"format": FORMAT, "version": version, "config": vm.resources.describe()}
    state["places"] = vm.places()
    try:
        with open(config["mem_file_path"], "w"), open(config["snapshot_path"], "w") as file:
            json.dump(state, file)
        vm.save(config["mem_file_path"])
    except (OSError, QmpError) as error:
        raise Fault(f"Create snapshot error: {error}") from error


def read(config: Config, version: tuple[int, ...]) -> dict[str, Any]:
    """Return the saved configuration.

    Raises:
        Fault: it is none of ours, or too new.
    """
    backend = config.get("mem_backend") or {}
    if backend.get("backend_type") == "Uffd":
        raise Fault("stand-in: memory by userfaultfd is not played")
    with open(config["snapshot_path"]) as file:
        try:
            state: dict[str, Any] = json.load(file)
        except ValueError as error:
            raise Fault(f"Failed to deserialize the snapshot state: {error}") from error
    if state.get("format") != FORMAT:
        raise Fault("Failed to deserialize the snapshot state: bad magic value")
    saved = tuple(int(part) for part in state["version"].split(".")[:3])
    if saved[:2] > version[:2]:
        raise Fault(f"Unsupported snapshot version {state['version']}")
    return state


def fill(resources: Resources, state: dict[str, Any], config: Config, loop: Loop) -> None:
    """Open again what the saved VM had.

    Raises:
        Fault: something is gone.
    """
    saved = state["config"]
    resources.machine = saved["machine-config"]
    resources.boot = None
    resources.balloon = saved["balloon"]
    resources.entropy = saved["entropy"]
    resources.memory_hotplug = saved["memory-hotplug"]
    resources.mmds = saved["mmds-config"]
    for drive in saved["drives"]:
        resources.put_drive(drive)
    taps = {entry["iface_id"]: entry for entry in config.get("network_overrides", ())}
    unknown = set(taps) - {net["iface_id"] for net in saved["network-interfaces"]}
    if unknown:
        raise Fault(f"Unknown network interface in network_overrides: {sorted(unknown)}")
    for net in saved["network-interfaces"]:
        override = taps.get(net["iface_id"], {})
        resources.put_net({**net, **override})
    for pmem in saved["pmem"]:
        resources.put_pmem(pmem)
    vsock = saved["vsock"]
    if "vsock_override" in config and vsock is None:
        raise Fault("The snapshot has no vsock device to override")
    if vsock is not None:
        resources.put_vsock({**vsock, **config.get("vsock_override", {})}, loop)


def memory_path(config: Config) -> str:
    """Return the file that the memory is loaded from."""
    backend = config.get("mem_backend") or {}
    return str(backend.get("backend_path") or config["mem_file_path"])
