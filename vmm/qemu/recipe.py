"""What QEMU is told to make each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import InvalidConfig, Unsupported
from vmm.qemu import disks
from vmm.qemu.steps import Recipe, Step, chardev_step, device_step, virtio_step
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
    VhostUserBlockDevice,
    VsockDevice,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.qemu.machines import Transport
    from vmm.spec import Device

_TAG_9P_MAX = 31
_VHOST_USER_QUEUES = (0, 256, 512, 1024)


def build(device: Device, name: str, *, transport: Transport, fds: tuple[str, ...] = ()) -> Recipe:
    """Return how to make a device.

    Args:
        device: what to make.
        name: QEMU id to give it: a letter first, at most 31 characters.
        transport: how virtio devices reach the guest.
        fds: for a NetDevice or VsockDevice with descriptors: how QEMU knows them, by
            number on the command line, by ``getfd`` name later.

    Raises:
        InvalidConfig: the device can't be made as described.
        Unsupported: this transport has no such device.
    """
    match device:
        case BlockDevice() | VhostUserBlockDevice() | PmemDevice():
            return disks.build(device, name, transport=transport)
        case NetDevice():
            return _net(device, name, transport, fds)
        case FsDevice():
            return _fs(device, name, transport)
        case NinePDevice():
            return _ninep(device, name, transport)
        case RngDevice():
            backend = Step("object-add", {"qom-type": "rng-builtin", "id": f"{name}-src"})
            return Recipe(
                name, (backend, virtio_step(name, "rng", transport, {"rng": f"{name}-src"}))
            )
        case BalloonDevice():
            options = {
                "free-page-reporting": device.free_page_reporting,
                "deflate-on-oom": device.deflate_on_oom,
            }
            return Recipe(name, (virtio_step(name, "balloon", transport, options),))
        case PanicDevice():
            if transport != "pci":
                raise Unsupported("guest_panic_event", "needs PCI", "QEMU")
            return Recipe(name, (device_step(name, "pvpanic-pci", {}),))
        case VsockDevice():
            return _vsock(device, name, transport, fds)
        case SerialDevice():
            front = {"chardev": f"{name}-chr", "name": device.name, "bus": "vserial.0"}
            return Recipe(name, (device_step(name, "virtserialport", front),), needs_slot=False)
        case VfioDevice():
            if transport != "pci":
                raise Unsupported("vfio_cold", "needs PCI", "QEMU")
            return Recipe(name, (device_step(name, "vfio-pci", {"host": device.address}),))


def _net(device: NetDevice, name: str, transport: Transport, fds: tuple[str, ...]) -> Recipe:
    if bool(device.tap) + bool(device.fds) + bool(device.socket) != 1:
        raise InvalidConfig(f"{device.id}: give one of a tap's name, open descriptors, a socket")
    if device.socket is not None:
        return _vhost_user_net(device, device.socket, name, transport)
    backend: dict[str, Any] = {"type": "tap", "id": f"{name}-net", "vhost": device.vhost}
    if device.tap:
        backend |= {"ifname": device.tap, "script": "no", "downscript": "no"}
    elif len(fds) == 1:
        backend["fd"] = fds[0]
    else:
        backend["fds"] = ":".join(fds)
    return Recipe(name, _card(device, name, transport, backend, len(fds)))


def _vhost_user_net(device: NetDevice, socket: Path, name: str, transport: Transport) -> Recipe:
    if device.queue_size not in _VHOST_USER_QUEUES:
        raise InvalidConfig(
            f"{device.id}: a queue of QEMU's has 256, 512 or 1024 entries, not {device.queue_size}"
        )
    chardev = chardev_step(f"{name}-chr", str(socket))
    backend: dict[str, Any] = {"type": "vhost-user", "id": f"{name}-net", "chardev": f"{name}-chr"}
    if device.queues > 1:
        backend["queues"] = device.queues
    return Recipe(name, (chardev, *_card(device, name, transport, backend, device.queues)))


def _card(
    device: NetDevice, name: str, transport: Transport, backend: dict[str, Any], queues: int
) -> tuple[Step, Step]:
    """The host's and the guest's half of a network card."""
    front: dict[str, Any] = {"netdev": f"{name}-net", "mac": device.mac}
    if transport == "pci":
        front["romfile"] = ""  # no network boot
    if device.mtu:
        front["host_mtu"] = device.mtu
    if device.queue_size:
        front |= {"rx_queue_size": device.queue_size, "tx_queue_size": device.queue_size}
    if queues > 1:
        front["mq"] = True
        if transport == "pci":
            front["vectors"] = 2 * queues + 2
    return (
        Step("netdev_add", backend, ("netdev_del", {"id": f"{name}-net"})),
        virtio_step(name, "net", transport, front),
    )


def _fs(device: FsDevice, name: str, transport: Transport) -> Recipe:
    front = {"chardev": f"{name}-chr", "tag": device.tag, "queue-size": device.queue_size}
    return Recipe(
        name,
        (
            chardev_step(f"{name}-chr", str(device.socket)),
            virtio_step(name, "fs", transport, front, family="vhost-user"),
        ),
    )


def _ninep(device: NinePDevice, name: str, transport: Transport) -> Recipe:
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
    return Recipe(name, (Step("fsdev", backend), virtio_step(name, "9p", transport, front)))


def _vsock(device: VsockDevice, name: str, transport: Transport, fds: tuple[str, ...]) -> Recipe:
    if device.vhost_user is not None:
        front: dict[str, Any] = {"chardev": f"{name}-chr"}
        return Recipe(
            name,
            (
                chardev_step(f"{name}-chr", str(device.vhost_user)),
                virtio_step(name, "vsock", transport, front, family="vhost-user"),
            ),
        )
    front = {"guest-cid": device.cid}
    if fds:
        front["vhostfd"] = fds[0]
    return Recipe(name, (virtio_step(name, "vsock", transport, front, family="vhost"),))
