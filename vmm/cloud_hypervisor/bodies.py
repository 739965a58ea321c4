"""What Cloud Hypervisor is told to make a device: one configuration object per kind. Pure.

The same object boots with the VM and is hot-plugged, so the two can't drift apart.
Source: Cloud Hypervisor's API description (vmm/src/api/openapi).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.cloud_hypervisor.features import Features
from vmm.errors import InvalidConfig, Unsupported
from vmm.spec import (
    MIB,
    BlockDevice,
    FsDevice,
    NetDevice,
    PmemDevice,
    RateLimit,
    VfioDevice,
)

if TYPE_CHECKING:
    from vmm.spec import Device, VmSpec

Body = dict[str, Any]

_REFILL_MS = 1000
_SERIAL_MAX = 20
_PMEM_ALIGNMENT = 2 * MIB
_HOST_DEVICES = "/sys/bus/pci/devices"

# Kind → member of the VM's configuration, and end of the request that adds one.
COLLECTIONS = {
    BlockDevice: ("disks", "disk"),
    NetDevice: ("net", "net"),
    FsDevice: ("fs", "fs"),
    PmemDevice: ("pmem", "pmem"),
    VfioDevice: ("devices", "device"),
}


def build(device: Device, name: str, spec: VmSpec, features: Features) -> Body:
    """Return the configuration of a disk, card, share, pmem or passed-on device.

    Args:
        device: what to make.
        name: its id there.
        spec: the VM.
        features: what this Cloud Hypervisor has.

    Raises:
        InvalidConfig: it is contradictory, or its file is missing.
        Unsupported: there is no such device.
    """
    match device:
        case BlockDevice():
            return _disk(device, name, features)
        case NetDevice():
            return _net(device, name, spec)
        case FsDevice():
            return _fs(device, name, spec)
        case PmemDevice():
            return _pmem(device, name, features)
        case VfioDevice():
            return {"id": name, "path": f"{_HOST_DEVICES}/{device.address}"}
    raise Unsupported(f"a {type(device).__name__}", device.id, features.vmm)


def _limiter(limit: RateLimit) -> Body:
    wanted = {
        "bandwidth": (limit.bytes_per_second, limit.bytes_burst),
        "ops": (limit.ops_per_second, limit.ops_burst),
    }
    body: Body = {}
    for name, (rate, burst) in wanted.items():
        if rate:
            body[name] = {"size": rate, "refill_time": _REFILL_MS}
            if burst:
                body[name]["one_time_burst"] = burst
    return body


def _disk(device: BlockDevice, name: str, features: Features) -> Body:
    if len(device.serial.encode()) > _SERIAL_MAX:
        raise InvalidConfig(f"{device.id}: a disk serial has at most {_SERIAL_MAX} bytes")
    try:
        if not device.path.is_file() and not device.path.is_block_device():
            raise InvalidConfig(f"{device.id}: no disk image at {device.path}")
    except OSError as error:
        raise InvalidConfig(f"{device.id}: {device.path}: {error.strerror}") from error
    if device.aio != "auto":
        raise InvalidConfig(f"{device.id}: Cloud Hypervisor chooses the way of its I/O itself")
    if not device.flush:
        raise InvalidConfig(f"{device.id}: Cloud Hypervisor's disks always flush")
    if device.logical_sector or device.physical_sector:
        raise InvalidConfig(f"{device.id}: Cloud Hypervisor's disks have sectors of the file's")
    if device.shared and not device.read_only:
        raise InvalidConfig(f"{device.id}: Cloud Hypervisor locks what is not read-only")
    body: Body = {"id": name, "path": str(device.path), "readonly": device.read_only}
    if device.direct:
        body["direct"] = True
    if device.serial:
        body["serial"] = device.serial
    if device.queues:
        body["num_queues"] = device.queues
    if device.queue_size:
        body["queue_size"] = device.queue_size
    if features.has("image_type"):
        # A guest could write another format's header into an image whose type is guessed.
        body["image_type"] = "Raw"
    if features.has("sparse") and not device.discard:
        body["sparse"] = False
    if device.limit is not None:
        body["rate_limiter_config"] = _limiter(device.limit)
    return body


def _net(device: NetDevice, name: str, spec: VmSpec) -> Body:
    if bool(device.tap) == bool(device.fds):
        raise InvalidConfig(f"{device.id}: give either a tap name or open descriptors")
    if device.vhost:
        raise InvalidConfig(f"{device.id}: Cloud Hypervisor moves packets itself, without vhost")
    if len(device.fds) > spec.vcpus:
        raise InvalidConfig(
            f"{device.id}: {len(device.fds)} queues, but {spec.vcpus} virtual CPUs at boot"
        )
    if device.rx_limit != device.tx_limit:
        raise InvalidConfig(f"{device.id}: Cloud Hypervisor has one rate limit for both directions")
    body: Body = {"id": name, "mac": device.mac}
    if device.tap:
        body["tap"] = device.tap
    else:
        body["num_queues"] = 2 * len(device.fds)
    if device.mtu:
        body["mtu"] = device.mtu
    if device.rx_limit is not None:
        body["rate_limiter_config"] = _limiter(device.rx_limit)
    return body


def _fs(device: FsDevice, name: str, spec: VmSpec) -> Body:
    if not spec.needs_shared_memory:
        raise InvalidConfig(f"{device.id}: virtio-fs needs shared_memory")
    return {
        "id": name,
        "tag": device.tag,
        "socket": str(device.socket),
        "num_queues": 1,
        "queue_size": device.queue_size,
    }


def _pmem(device: PmemDevice, name: str, features: Features) -> Body:
    try:
        size = device.path.stat().st_size
    except OSError as error:
        raise InvalidConfig(f"{device.id}: {device.path}: {error.strerror}") from error
    if not size or size % _PMEM_ALIGNMENT:
        raise InvalidConfig(f"{device.id}: {device.path} is not whole 2 MiB long")
    if device.limit is not None:
        raise Unsupported("rate_limit", f"{device.id}: not for pmem", features.vmm)
    body: Body = {"id": name, "file": str(device.path)}
    if device.read_only:
        body["discard_writes"] = True
    return body
