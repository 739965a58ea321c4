"""How QEMU makes each of Cloud Hypervisor's devices, at start and while it runs."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from typing import Any

from tests.standins.clh.errors import Refused
from tests.standins.server import Loop
from tests.standins.taps import check_tap, open_tap
from tests.standins.vsock import VsockBackend

Command = tuple[str, dict[str, Any]]


@dataclass
class Recipe:
    """A device's parts.

    Args:
        name: QEMU id of the front-end.
        backends: commands that make what it needs.
        front: ``device_add`` arguments, without its place.
        undo: commands that remove the back-ends.
        fds: descriptors of ours, named ``@0``, ``@1`` and so on in the back-ends.
        vsock: the daemon, for a vsock device.
    """

    name: str
    backends: list[Command]
    front: dict[str, Any]
    undo: list[Command] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    vsock: VsockBackend | None = None

    def close(self) -> None:
        """Give up what was opened for it."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self.vsock is not None:
            self.vsock.close()


def qemu_id(identity: str) -> str:
    """Return the QEMU id for one of ours, which may begin with ``_``."""
    return f"d{identity}"


def disk(config: dict[str, Any]) -> Recipe:
    """Return a disk.

    Raises:
        Refused: its file is not there or of a format that is not raw.
    """
    name = qemu_id(config["id"])
    front: dict[str, Any] = {"driver": "virtio-blk-pci", "num-queues": config["num_queues"]}
    front["queue-size"] = min(config["queue_size"], 1024)
    if config.get("vhost_user"):
        front["driver"] = "vhost-user-blk-pci"
        return _with_socket(name, front, config["vhost_socket"])
    path = config.get("path")
    try:
        is_block = stat.S_ISBLK(os.stat(path).st_mode)  # type: ignore[arg-type]
    except (OSError, TypeError) as error:
        raise Refused("internal", f"Failed to open disk path: {error}") from error
    image = config.get("image_type", "Unknown")
    if image in ("FixedVhd", "Vhdx"):
        raise Refused("internal", f"stand-in: no {image} images")
    node: dict[str, Any] = {
        "driver": "qcow2" if image == "Qcow2" else "raw",
        "node-name": f"{name}-n",
        "read-only": config["readonly"],
        "cache": {"direct": config["direct"], "no-flush": False},
        "file": {"driver": "host_device" if is_block else "file", "filename": path},
    }
    if config["direct"]:
        node["file"]["cache"] = {"direct": True}
    if config.get("serial"):
        front["serial"] = config["serial"]
    front["drive"] = node["node-name"]
    undo = [("blockdev-del", {"node-name": node["node-name"]})]
    return Recipe(name, [("blockdev-add", node)], front, undo)


def throttle(config: dict[str, Any]) -> dict[str, int] | None:
    """Return QEMU's I/O throttle for a disk's limits, if it has any."""
    found = config.get("rate_limiter_config")
    if not found:
        return None
    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    for bucket, name in (("bandwidth", "bps"), ("ops", "iops")):
        if (limit := found.get(bucket)) and limit["size"] and limit["refill_time"]:
            limits[name] = max(1, limit["size"] * 1000 // limit["refill_time"])
    return limits


def net(config: dict[str, Any]) -> Recipe:
    """Return a network interface.

    Raises:
        Refused: its tap can't be had.
    """
    name = qemu_id(config["id"])
    front: dict[str, Any] = {"driver": "virtio-net-pci", "romfile": "", "netdev": f"{name}-b"}
    if config.get("mac"):
        front["mac"] = config["mac"]
    if config.get("mtu"):
        front["host_mtu"] = config["mtu"]
    pairs = config["num_queues"] // 2
    if config.get("vhost_user"):
        return _vhost_user_net(name, front, config["vhost_socket"], pairs)
    fds = [os.dup(fd) for fd in config.get("fds") or ()]
    try:
        for fd in fds:
            check_tap(fd)
        if not fds:
            if pairs > 1:
                raise OSError(95, "stand-in: several queues need file descriptors")
            fds = [open_tap(config.get("tap") or "vmtap0")]
    except OSError as error:
        for fd in fds:
            os.close(fd)
        text = f"Failed to open taps: {error}"
        raise Refused("internal", "The device could not be added", text) from error
    if pairs > 1:
        front |= {"mq": True, "vectors": 2 * pairs + 2}
    names = ":".join(f"@{index}" for index in range(len(fds)))
    backend = {"type": "tap", "id": f"{name}-b", "vhost": False}
    backend["fds" if pairs > 1 else "fd"] = names
    undo = [("netdev_del", {"id": f"{name}-b"})]
    return Recipe(name, [("netdev_add", backend)], front, undo, fds)


def _vhost_user_net(name: str, front: dict[str, Any], path: str, pairs: int) -> Recipe:
    made = _with_socket(name, {}, path)
    backend = {"type": "vhost-user", "id": front["netdev"], "chardev": made.front["chardev"]}
    if pairs > 1:
        backend["queues"] = pairs
        front |= {"mq": True, "vectors": 2 * pairs + 2}
    undo = [("netdev_del", {"id": front["netdev"]}), *made.undo]
    return Recipe(name, [*made.backends, ("netdev_add", backend)], front, undo)


def fs(config: dict[str, Any]) -> Recipe:
    """Return a shared directory: a virtiofsd's socket."""
    front = {"driver": "vhost-user-fs-pci", "tag": config["tag"]}
    front["queue-size"] = config["queue_size"]
    return _with_socket(qemu_id(config["id"]), front, config["socket"])


def _with_socket(name: str, front: dict[str, Any], path: str) -> Recipe:
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    make = ("chardev-add", {"id": f"{name}-c", "backend": backend})
    return Recipe(
        name, [make], {**front, "chardev": f"{name}-c"}, [("chardev-remove", {"id": f"{name}-c"})]
    )


def pmem(config: dict[str, Any]) -> Recipe:
    """Return persistent memory."""
    name = qemu_id(config["id"])
    backend = {
        "qom-type": "memory-backend-file",
        "id": f"{name}-m",
        "mem-path": config["file"],
        "share": not config["discard_writes"],
        "size": config.get("size") or os.stat(config["file"]).st_size,
    }
    front = {"driver": "virtio-pmem-pci", "memdev": f"{name}-m"}
    return Recipe(name, [("object-add", backend)], front, [("object-del", {"id": f"{name}-m"})])


def vfio(config: dict[str, Any]) -> Recipe:
    """Return a host device."""
    front = {"driver": "vfio-pci", "sysfsdev": config["path"].rstrip("/")}
    return Recipe(qemu_id(config["id"]), [], front)


def vsock(config: dict[str, Any], loop: Loop) -> Recipe:
    """Return the vsock device; its daemon starts now.

    Raises:
        Refused: the socket exists or can't be.
    """
    name = qemu_id(config["id"])
    try:
        backend = VsockBackend(config["cid"], config["socket"], loop)
    except OSError as error:
        text = f"Error binding to the host-side Unix socket: {error}"
        raise Refused("internal", "Cannot create virtio-vsock", text) from error
    data = {"addr": {"type": "fd", "data": {"str": "@0"}}, "server": False}
    make = ("chardev-add", {"id": f"{name}-c", "backend": {"type": "socket", "data": data}})
    front = {"driver": "vhost-user-vsock-pci", "chardev": f"{name}-c"}
    undo = [("chardev-remove", {"id": f"{name}-c"})]
    fds = [os.dup(backend.vhost.fileno())]
    return Recipe(name, [make], front, undo, fds, backend)


BUILDERS = {"disk": disk, "net": net, "fs": fs, "pmem": pmem, "device": vfio}


def cold_arguments(recipe: Recipe, place: dict[str, Any]) -> list[str]:
    """Return a device as command-line options; its descriptors are inherited by number."""
    arguments: list[str] = []
    numbers = {f"@{index}": str(fd) for index, fd in enumerate(recipe.fds)}
    for command, options in recipe.backends:
        match command:
            case "blockdev-add":
                arguments += ["-blockdev", json.dumps(options)]
            case "object-add":
                arguments += ["-object", json.dumps(options)]
            case "netdev_add":
                arguments += ["-netdev", json.dumps(_replace(options, numbers))]
            case "chardev-add":
                arguments += ["-chardev", _chardev(_replace(options, numbers))]
    front = {**recipe.front, "id": recipe.name, **place}
    return [*arguments, "-device", json.dumps(front)]


def _chardev(options: dict[str, Any]) -> str:
    address = options["backend"]["data"]["addr"]
    if address["type"] == "fd":
        return f"socket,id={options['id']},fd={address['data']['str']}"
    path = address["data"]["path"].replace(",", ",,")
    return f"socket,id={options['id']},path={path}"


def _replace(value: Any, names: dict[str, str]) -> Any:
    """Put descriptor names in for ``@0`` and so on."""
    if isinstance(value, dict):
        return {key: _replace(item, names) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("@"):
        return ":".join(names[part] for part in value.split(":"))
    return value


def with_fds(command: Command, names: dict[str, str]) -> Command:
    """Return a command with its descriptors' names put in."""
    return command[0], _replace(command[1], names)
