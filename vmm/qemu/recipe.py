"""What QEMU is told to make a device: one list of QMP steps for cold and hot plug.

A step's arguments are the same as a QMP command and as a JSON command-line option, so
what boots with a VM and what is added to it later can't drift apart. Values are typed
as QEMU 9.2 and later demand (numbers as numbers, switches as booleans).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmm.errors import InvalidConfig, Unsupported
from vmm.spec import (
    BalloonDevice,
    BlockDevice,
    FsDevice,
    NetDevice,
    NinePDevice,
    PanicDevice,
    PmemDevice,
    RngDevice,
    SerialDevice,
    VfioDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from vmm.spec import Device

_SERIAL_MAX = 20
_TAG_9P_MAX = 31
# QMP command → command-line option that takes the same arguments as JSON.
_JSON_OPTIONS = {
    "blockdev-add": "-blockdev",
    "object-add": "-object",
    "netdev_add": "-netdev",
    "device_add": "-device",
}


@dataclass(frozen=True)
class Step:
    """One QMP command, and the one that takes it back.

    Args:
        command: QMP command; ``fsdev`` and ``chardev`` exist on the command line too.
        arguments: its arguments.
        undo: command and arguments that release what the step made. For a device it
            only asks the guest to let go.
    """

    command: str
    arguments: dict[str, Any]
    undo: tuple[str, dict[str, Any]] | None = None

    def options(self) -> list[str]:
        """Return the step as command-line arguments."""
        if option := _JSON_OPTIONS.get(self.command):
            return [option, json.dumps(self.arguments, separators=(",", ":"))]
        if self.command == "chardev-add":
            return ["-chardev", _chardev_option(self.arguments)]
        if self.command == "fsdev":
            return ["-fsdev", _key_values(**self.arguments)]
        raise ValueError(f"{self.command} has no command-line form")


@dataclass(frozen=True)
class Recipe:
    """All steps for one device, the front-end (``device_add``) last.

    Args:
        name: QEMU id of the front-end.
        steps: what to do in order.
        needs_slot: the front-end takes a PCI slot or an MMIO transport.
    """

    name: str
    steps: tuple[Step, ...]
    needs_slot: bool = True

    def at(self, bus: str, addr: str) -> Recipe:
        """Return the recipe with the front-end put on a bus at a slot."""
        *rest, front = self.steps
        placed = {**front.arguments, "bus": bus} | ({"addr": addr} if addr else {})
        return replace(self, steps=(*rest, replace(front, arguments=placed)))

    @property
    def undo(self) -> list[tuple[str, dict[str, Any]]]:
        """Commands that release the back-ends once the front-end is gone, last made first."""
        return [step.undo for step in reversed(self.steps[:-1]) if step.undo is not None]


def build(device: Device, name: str, *, pci: bool, fds: tuple[str, ...] = ()) -> Recipe:
    """Return how to make a device.

    Args:
        device: what to make.
        name: QEMU id to give it: a letter first, at most 31 characters.
        pci: virtio over PCI; else over MMIO.
        fds: for a NetDevice or VsockDevice with descriptors: how QEMU knows them, by
            number on the command line, by ``getfd`` name later.

    Raises:
        InvalidConfig: the device can't be made as described.
        Unsupported: this transport has no such device.
    """
    _refuse_new(device)
    match device:
        case BlockDevice():
            return _block(device, name, pci)
        case NetDevice():
            return _net(device, name, pci, fds)
        case FsDevice():
            return _fs(device, name, pci)
        case NinePDevice():
            return _ninep(device, name, pci)
        case RngDevice():
            backend = Step("object-add", {"qom-type": "rng-builtin", "id": f"{name}-src"})
            return Recipe(name, (backend, _front(name, "rng", pci, {"rng": f"{name}-src"})))
        case BalloonDevice():
            options = {
                "free-page-reporting": device.free_page_reporting,
                "deflate-on-oom": device.deflate_on_oom,
            }
            return Recipe(name, (_front(name, "balloon", pci, options),))
        case PanicDevice():
            if not pci:
                raise Unsupported("guest_panic_event", "needs PCI")
            return Recipe(name, (_device(name, "pvpanic-pci", {}),))
        case VsockDevice():
            return _vsock(device, name, pci, fds)
        case SerialDevice():
            front = {"chardev": f"{name}-chr", "name": device.name, "bus": "vserial.0"}
            return Recipe(name, (_device(name, "virtserialport", front),), needs_slot=False)
        case PmemDevice() | VfioDevice():
            raise Unsupported(f"a {type(device).__name__}", "not with QEMU yet", "QEMU")


def _refuse_new(device: Device) -> None:
    """Refuse what the other backends do and this one does not do yet."""
    match device:
        case BlockDevice():
            limits = [device.limit]
            if device.aio != "auto":
                raise InvalidConfig(f"{device.id}: QEMU's disks have no choice of aio yet")
        case NetDevice():
            limits = [device.rx_limit, device.tx_limit]
        case _:
            return
    if any(limit is not None for limit in limits):
        raise Unsupported("rate_limit", f"{device.id}: not with QEMU yet", "QEMU")


def _device(name: str, driver: str, options: dict[str, Any]) -> Step:
    arguments = {"driver": driver, "id": name, **options}
    return Step("device_add", arguments, ("device_del", {"id": name}))


def _front(
    name: str, kind: str, pci: bool, options: dict[str, Any], family: str = "virtio"
) -> Step:
    return _device(name, f"{family}-{kind}-{'pci' if pci else 'device'}", options)


def _block(device: BlockDevice, name: str, pci: bool) -> Recipe:
    if len(device.serial.encode()) > _SERIAL_MAX:
        raise InvalidConfig(f"{device.id}: a disk serial has at most {_SERIAL_MAX} bytes")
    try:
        is_block = device.path.is_block_device()
        if not is_block and not device.path.is_file():
            raise InvalidConfig(f"{device.id}: no disk image at {device.path}")
    except OSError as error:
        raise InvalidConfig(f"{device.id}: {device.path}: {error.strerror}") from error
    node = f"{name}-img"
    file: dict[str, Any] = {
        "driver": "host_device" if is_block else "file",
        "filename": str(device.path),
    }
    if device.shared:
        file["locking"] = "off"
    if device.direct:
        file["cache"] = {"direct": True}
    backend = {
        "driver": "raw",
        "node-name": node,
        "file": file,
        "read-only": device.read_only,
        "discard": "unmap" if device.discard and not device.read_only else "ignore",
        "cache": {"direct": device.direct, "no-flush": not device.flush},
    }
    front: dict[str, Any] = {"drive": node}
    if device.serial:
        front["serial"] = device.serial
    return Recipe(
        name,
        (
            Step("blockdev-add", backend, ("blockdev-del", {"node-name": node})),
            _front(name, "blk", pci, front),
        ),
    )


def _net(device: NetDevice, name: str, pci: bool, fds: tuple[str, ...]) -> Recipe:
    if bool(device.tap) == bool(device.fds):
        raise InvalidConfig(f"{device.id}: give either a tap name or open descriptors")
    backend: dict[str, Any] = {"type": "tap", "id": f"{name}-net", "vhost": device.vhost}
    if device.tap:
        backend |= {"ifname": device.tap, "script": "no", "downscript": "no"}
    elif len(fds) == 1:
        backend["fd"] = fds[0]
    else:
        backend["fds"] = ":".join(fds)
    front: dict[str, Any] = {"netdev": f"{name}-net", "mac": device.mac}
    if pci:
        front["romfile"] = ""  # no network boot
    if device.mtu:
        front["host_mtu"] = device.mtu
    if len(fds) > 1:
        front["mq"] = True
        if pci:
            front["vectors"] = 2 * len(fds) + 2
    return Recipe(
        name,
        (
            Step("netdev_add", backend, ("netdev_del", {"id": f"{name}-net"})),
            _front(name, "net", pci, front),
        ),
    )


def _fs(device: FsDevice, name: str, pci: bool) -> Recipe:
    front = {"chardev": f"{name}-chr", "tag": device.tag, "queue-size": device.queue_size}
    return Recipe(
        name,
        (
            _chardev(f"{name}-chr", str(device.socket)),
            _front(name, "fs", pci, front, family="vhost-user"),
        ),
    )


def _ninep(device: NinePDevice, name: str, pci: bool) -> Recipe:
    if len(device.tag.encode()) > _TAG_9P_MAX:
        raise InvalidConfig(f"{device.id}: a 9p tag has at most {_TAG_9P_MAX} bytes")
    backend = {
        "driver": "local",
        "id": f"{name}-fs",
        "path": str(device.path),
        "security_model": device.ownership,
        "multidevs": "remap",
    }
    if device.read_only:
        backend["readonly"] = "on"
    front = {"fsdev": f"{name}-fs", "mount_tag": device.tag}
    return Recipe(name, (Step("fsdev", backend), _front(name, "9p", pci, front)))


def _vsock(device: VsockDevice, name: str, pci: bool, fds: tuple[str, ...]) -> Recipe:
    if device.vhost_user is not None:
        front: dict[str, Any] = {"chardev": f"{name}-chr"}
        return Recipe(
            name,
            (
                _chardev(f"{name}-chr", str(device.vhost_user)),
                _front(name, "vsock", pci, front, family="vhost-user"),
            ),
        )
    front = {"guest-cid": device.cid}
    if fds:
        front["vhostfd"] = fds[0]
    return Recipe(name, (_front(name, "vsock", pci, front, family="vhost"),))


def _chardev(name: str, path: str) -> Step:
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    return Step("chardev-add", {"id": name, "backend": backend}, ("chardev-remove", {"id": name}))


def _chardev_option(arguments: dict[str, Any]) -> str:
    path = arguments["backend"]["data"]["addr"]["data"]["path"]
    return _key_values("socket", id=arguments["id"], path=path)


def _key_values(*words: str, **values: str) -> str:
    """Render QEMU's key=value syntax, in which a comma in a value is doubled."""
    if driver := values.pop("driver", ""):
        words = (driver, *words)
    pairs = [f"{key}={value.replace(',', ',,')}" for key, value in values.items()]
    return ",".join([*words, *pairs])
