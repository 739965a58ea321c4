"""Save a paused Cloud Hypervisor VM into a directory, and load one from it.

A snapshot's ``config.json`` names the sockets, pipes and taps of the VM it was taken of. It
is loaded from a directory of links with a configuration that names this VM's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from vmm.errors import InvalidConfig
from vmm.spec import NetDevice

if TYPE_CHECKING:
    from vmm.cloud_hypervisor.bodies import Body
    from vmm.cloud_hypervisor.hotplug import Call
    from vmm.cloud_hypervisor.plan import Plan

CONFIG_FILE = "config.json"
LINKS = "restore"
_TIMEOUT = 120.0  # the whole memory is written or read


async def create(call: Call, target: Path) -> None:
    """Save the VM's state and memory.

    Args:
        call: makes a request.
        target: existing directory.
    """
    if not await trio.Path(target).is_dir():
        raise InvalidConfig(f"no directory for the snapshot at {target}")
    body = {"destination_url": f"file://{target}"}
    await call("PUT", "/vm.snapshot", body, timeout=_TIMEOUT)


async def load(
    call: Call, source: Path, links: Path, plan: Plan, vsock: Path, console: Path | None
) -> None:
    """Load what :func:`create` saved; the VM is paused then.

    Args:
        call: makes a request.
        source: the directory.
        links: directory to make for the links; removed again.
        plan: this VM's devices: its cards take the place of those at the time.
        vsock: this VM's socket.
        console: this VM's console pipe.

    Raises:
        InvalidConfig: there is no snapshot, or it has other devices.
    """
    nets = [p for p in plan.placed.values() if isinstance(p.handle.device, NetDevice)]
    fds: list[int] = []
    net_fds: list[Body] = []
    for placed in nets:
        device = placed.handle.device
        if isinstance(device, NetDevice) and device.fds:
            fds += device.fds
            net_fds.append({"id": placed.name, "num_fds": len(device.fds)})

    def prepare() -> None:
        try:
            config = json.loads((source / CONFIG_FILE).read_bytes())
            _adapt(config, plan, vsock, console)
            links.mkdir(mode=0o700)
            for path in source.iterdir():
                if path.name != CONFIG_FILE:
                    (links / path.name).symlink_to(path.resolve())
            (links / CONFIG_FILE).write_text(json.dumps(config))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidConfig(f"no snapshot in {source}: {error!r}") from error

    await trio.to_thread.run_sync(prepare)
    try:
        body: Body = {"source_url": f"file://{links}", "prefault": False}
        if net_fds:
            body["net_fds"] = net_fds
        await call("PUT", "/vm.restore", body, fds=fds, timeout=_TIMEOUT)
    finally:
        # The VMM has read it all by now; memory is not mapped from it.
        shutil.rmtree(links, ignore_errors=True)


def _adapt(config: dict[str, Any], plan: Plan, vsock: Path, console: Path | None) -> None:
    if config.get("vsock"):
        config["vsock"]["socket"] = str(vsock)
    serial = config.get("serial") or {}
    if serial.get("mode") == "File" and console is not None:
        serial["file"] = str(console)
    taps = {
        placed.name: placed.handle.device.tap
        for placed in plan.placed.values()
        if isinstance(placed.handle.device, NetDevice)
    }
    for net in config.get("net") or ():
        if net["id"] not in taps:
            raise InvalidConfig(f"the snapshot has a network card {net['id']}, this VM has not")
        if taps[net["id"]]:
            net["tap"] = taps[net["id"]]
