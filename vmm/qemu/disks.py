"""What QEMU is told to make disks: images, block devices, vhost-user, persistent memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import InvalidConfig, Unsupported
from vmm.qemu.steps import Recipe, Step, chardev_step, device_step, virtio_step
from vmm.spec import MIB, BlockDevice, PmemDevice, RateLimit, VhostUserBlockDevice

if TYPE_CHECKING:
    from vmm.qemu.machines import Transport

SCSI_BUS = "scsi0.0"
_SERIAL_MAX = 20
_PMEM_GRANULE = 2 * MIB


def build(
    device: BlockDevice | VhostUserBlockDevice | PmemDevice, name: str, *, transport: Transport
) -> Recipe:
    """Return how to make a disk.

    Args:
        device: what to make.
        name: QEMU id to give it.
        transport: how virtio devices reach the guest.

    Raises:
        InvalidConfig: it can't be made as described.
        Unsupported: this transport has no such device.
    """
    match device:
        case BlockDevice():
            return _block(device, name, transport)
        case VhostUserBlockDevice():
            return _vhost_user(device, name, transport)
        case PmemDevice():
            return _pmem(device, name, transport)


def node_name(name: str) -> str:
    """Return the name of the block node that holds a disk's image."""
    return f"{name}-img"


def throttle_arguments(path: str, limit: RateLimit | None) -> dict[str, Any]:
    """Return the arguments of ``block_set_io_throttle``; a burst counts for one second.

    Args:
        path: of the device in QEMU's object tree.
        limit: None for none.
    """
    limit = limit or RateLimit()
    arguments: dict[str, Any] = {
        "id": path,
        "bps": limit.bytes_per_second,
        "iops": limit.ops_per_second,
        **dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0),
    }
    for key, burst in (("bps", limit.bytes_burst), ("iops", limit.ops_burst)):
        if burst > arguments[key] > 0:
            arguments[f"{key}_max"] = burst
    return arguments


def _block(device: BlockDevice, name: str, transport: Transport) -> Recipe:
    if len(device.serial.encode()) > _SERIAL_MAX:
        raise InvalidConfig(f"{device.id}: a disk serial has at most {_SERIAL_MAX} bytes")
    if device.aio == "native" and not device.direct:
        raise InvalidConfig(f"{device.id}: aio = native needs direct I/O")
    if device.bus == "scsi" and transport == "mmio":
        raise Unsupported("a SCSI disk", "needs PCI or CCW", "QEMU")
    is_block = _is_block(device)
    file: dict[str, Any] = {
        "driver": "host_device" if is_block else "file",
        "filename": str(device.path),
    }
    if device.shared:
        file["locking"] = "off"
    if device.direct:
        file["cache"] = {"direct": True}
    if device.aio != "auto":
        file["aio"] = device.aio
    backend = {
        "driver": "raw",
        "node-name": node_name(name),
        "file": file,
        "read-only": device.read_only,
        "discard": "unmap" if device.discard and not device.read_only else "ignore",
        "cache": {"direct": device.direct, "no-flush": not device.flush},
    }
    step = Step("blockdev-add", backend, ("blockdev-del", {"node-name": node_name(name)}))
    front: dict[str, Any] = {"drive": node_name(name)}
    if device.serial:
        front["serial"] = device.serial
    if device.logical_sector:
        front["logical_block_size"] = device.logical_sector
    if device.physical_sector:
        front["physical_block_size"] = device.physical_sector
    if device.bus == "scsi":
        front |= {"bus": SCSI_BUS, "channel": 0}
        return Recipe(name, (step, device_step(name, "scsi-hd", front)), needs_slot=False)
    if device.queues:
        front["num-queues"] = device.queues
    if device.queue_size:
        front["queue-size"] = device.queue_size
    return Recipe(name, (step, virtio_step(name, "blk", transport, front)))


def _is_block(device: BlockDevice) -> bool:
    try:
        if device.path.is_block_device():
            return True
        if not device.path.is_file():
            raise InvalidConfig(f"{device.id}: no disk image at {device.path}")
    except OSError as error:
        raise InvalidConfig(f"{device.id}: {device.path}: {error.strerror}") from error
    return False


def _vhost_user(device: VhostUserBlockDevice, name: str, transport: Transport) -> Recipe:
    front = {"chardev": f"{name}-chr", "num-queues": device.queues}
    return Recipe(
        name,
        (
            chardev_step(f"{name}-chr", str(device.socket)),
            virtio_step(name, "blk", transport, front, family="vhost-user"),
        ),
    )


def _pmem(device: PmemDevice, name: str, transport: Transport) -> Recipe:
    if transport != "pci":
        raise Unsupported("pmem_cold", "needs PCI", "QEMU")
    if device.limit is not None:
        raise Unsupported("rate_limit", f"{device.id}: QEMU has none for pmem", "QEMU")
    try:
        size = device.path.stat().st_size
    except OSError as error:
        raise InvalidConfig(f"{device.id}: {device.path}: {error.strerror}") from error
    if not size or size % _PMEM_GRANULE:
        raise InvalidConfig(f"{device.id}: {device.path} has {size} bytes, no multiple of 2 MiB")
    memory = {
        "qom-type": "memory-backend-file",
        "id": f"{name}-mem",
        "mem-path": str(device.path),
        "size": size,
        # The guest's writes are dropped then, and a file server that it has on its memory
        # is not given the file at all.
        "share": not device.read_only,
        "readonly": device.read_only,
    }
    backend = Step("object-add", memory, ("object-del", {"id": f"{name}-mem"}))
    front = {"memdev": f"{name}-mem"}
    if device.nvdimm:
        front_step = device_step(name, "nvdimm", {**front, "unarmed": device.read_only})
        return Recipe(name, (backend, front_step), needs_slot=False)
    return Recipe(name, (backend, virtio_step(name, "pmem", transport, front)))
