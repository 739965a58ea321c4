"""Save a paused Firecracker VM into a directory, and load one from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

from vmm.errors import InvalidConfig, Unsupported
from vmm.spec import NetDevice

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.firecracker.bodies import Body
    from vmm.firecracker.hotplug import Call
    from vmm.firecracker.plan import Inside, Plan

STATE_FILE = "vmstate"
MEMORY_FILE = "memory"
NOTES_FILE = "katapy.json"
_TIMEOUT = 120.0  # the whole memory is written, and nothing else served meanwhile


async def create(call: Call, target: Path, plan: Plan, vsock: str) -> None:
    """Save the VM's state and memory.

    Args:
        call: makes a request.
        target: existing directory.
        plan: the VM's devices.
        vsock: the hybrid vsock's socket as Firecracker sees it.
    """
    if not await trio.Path(target).is_dir():
        raise InvalidConfig(f"no directory for the snapshot at {target}")
    body = {
        "snapshot_path": plan.map_path(target / STATE_FILE),
        "mem_file_path": plan.map_path(target / MEMORY_FILE),
        "snapshot_type": "Full",
    }
    await call("PUT", "/snapshot/create", body, timeout=_TIMEOUT)
    await trio.Path(target / NOTES_FILE).write_text(json.dumps({"vsock": vsock}))


async def load(call: Call, source: Path, plan: Plan, inside: Inside) -> None:
    """Load what :func:`create` saved; the VM is paused then.

    Args:
        call: makes a request.
        source: the directory.
        plan: this VM's devices: its taps take the place of those at the time.
        inside: this VM's socket, and where metrics go, which is not in a snapshot.

    Raises:
        InvalidConfig: there is no snapshot.
        Unsupported: it would listen on another socket than this VM's.
    """
    try:
        notes = json.loads(await trio.Path(source / NOTES_FILE).read_text())
        former = str(notes["vsock"])
    except (OSError, ValueError, KeyError) as error:
        raise InvalidConfig(f"no snapshot in {source}: {error}") from error
    features = plan.features
    body: Body = {
        "snapshot_path": plan.map_path(source / STATE_FILE),
        "mem_backend": {
            "backend_type": "File",
            "backend_path": plan.map_path(source / MEMORY_FILE),
        },
        "resume_vm": False,
    }
    overrides = [
        {"iface_id": placed.name, "host_dev_name": placed.handle.device.tap}
        for placed in plan.placed.values()
        if isinstance(placed.handle.device, NetDevice)
    ]
    if overrides:
        body["network_overrides"] = overrides
    if features.has("vsock_override"):
        body["vsock_override"] = {"uds_path": inside.vsock}
    elif former != inside.vsock:
        raise Unsupported(
            "restore_overrides",
            f"of the vsock socket: {features.since('vsock_override')}, or {former} again",
            features.vmm,
        )
    await call("PUT", "/metrics", {"metrics_path": inside.metrics})
    await call("PUT", "/snapshot/load", body, timeout=_TIMEOUT)
