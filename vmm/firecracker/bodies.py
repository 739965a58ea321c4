"""What Firecracker is told to make a device: one request body per kind. Pure.

Source: Firecracker's API description (src/firecracker/swagger) and docs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import InvalidConfig, Unsupported
from vmm.spec import BalloonDevice, BlockDevice, NetDevice, PmemDevice, RateLimit

if TYPE_CHECKING:
    from vmm.firecracker.features import Features

Body = dict[str, Any]

_REFILL_MS = 1000
_MTU_MIN, _MTU_MAX = 68, 65535


def limiter(limit: RateLimit | None, *, change: bool = False) -> Body:
    """Return a rate limiter.

    Args:
        limit: what to allow.
        change: name unlimited buckets as well, which in an update switches them off.
    """
    limit = limit or RateLimit()
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
        elif change:
            body[name] = {"size": 0, "refill_time": 0}
    return body


def drive(device: BlockDevice, name: str, path: str) -> Body:
    """Return the body of ``PUT /drives/{name}``.

    Args:
        device: the disk.
        name: its id there.
        path: its file as the VMM sees it.

    Raises:
        InvalidConfig: it asks for what Firecracker's disks don't have.
    """
    check_disk(device)
    body: Body = {
        "drive_id": name,
        "is_root_device": False,  # the kernel command line names the root
        "path_on_host": path,
        "is_read_only": device.read_only,
        "cache_type": "Writeback" if device.flush else "Unsafe",
        "io_engine": "Async" if device.aio == "io_uring" else "Sync",
    }
    if device.limit is not None:
        body["rate_limiter"] = limiter(device.limit)
    return body


def check_disk(device: BlockDevice) -> None:
    """Raise unless a disk asks only for what Firecracker's have.

    Raises:
        InvalidConfig: it names the rest.
    """
    try:
        if not device.path.is_file() and not device.path.is_block_device():
            raise InvalidConfig(f"{device.id}: no disk image at {device.path}")
    except OSError as error:
        raise InvalidConfig(f"{device.id}: {device.path}: {error.strerror}") from error
    if device.direct:
        raise InvalidConfig(f"{device.id}: Firecracker can't bypass the host's page cache")
    if device.serial:
        raise InvalidConfig(f"{device.id}: Firecracker makes the disk's serial number itself")
    if device.queues or device.queue_size or device.logical_sector or device.physical_sector:
        raise InvalidConfig(f"{device.id}: Firecracker's disks have one queue and small sectors")
    if device.aio == "native":
        raise InvalidConfig(f"{device.id}: Firecracker does I/O by threads or io_uring")


def interface(device: NetDevice, name: str, features: Features) -> Body:
    """Return the body of ``PUT /network-interfaces/{name}``.

    Raises:
        InvalidConfig: it is contradictory.
        Unsupported: it asks for what this version's cards don't have.
    """
    if device.fds:
        raise Unsupported("nic_by_fd", "Firecracker opens taps by name only", features.vmm)
    if not device.tap:
        raise InvalidConfig(f"{device.id}: Firecracker needs the name of a tap")
    if device.vhost:
        raise InvalidConfig(f"{device.id}: Firecracker moves packets itself, without vhost")
    body: Body = {"iface_id": name, "host_dev_name": device.tap, "guest_mac": device.mac}
    # An older one can't announce it; the guest's link is given its MTU by the agent too.
    if device.mtu and features.has("mtu"):
        if not _MTU_MIN <= device.mtu <= _MTU_MAX:
            raise InvalidConfig(f"{device.id}: an MTU is {_MTU_MIN} to {_MTU_MAX}")
        body["mtu"] = device.mtu
    if device.rx_limit is not None:
        body["rx_rate_limiter"] = limiter(device.rx_limit)
    if device.tx_limit is not None:
        body["tx_rate_limiter"] = limiter(device.tx_limit)
    return body


def pmem(device: PmemDevice, name: str, path: str, features: Features) -> Body:
    """Return the body of ``PUT /pmem/{name}``.

    Raises:
        InvalidConfig: there is no such file, or it has an odd size.
        Unsupported: this version has none, or none with a limit.
    """
    if not features.has("pmem"):
        raise Unsupported("pmem_cold", features.since("pmem"), features.vmm)
    if not device.path.is_file():
        raise InvalidConfig(f"{device.id}: no file at {device.path}")
    body: Body = {"id": name, "path_on_host": path, "read_only": device.read_only}
    if device.limit is not None:
        if not features.has("pmem_limit"):
            detail = f"of pmem: {features.since('pmem_limit')}"
            raise Unsupported("rate_limit", detail, features.vmm)
        body["rate_limiter"] = limiter(device.limit)
    return body


def balloon(device: BalloonDevice, features: Features) -> Body:
    """Return the body of ``PUT /balloon``, the balloon being empty.

    Free page reporting is left out where there is none: it saves memory, no more.
    """
    body: Body = {"amount_mib": 0, "deflate_on_oom": device.deflate_on_oom}
    if device.free_page_reporting and features.has("free_page_reporting"):
        body["free_page_reporting"] = True
    return body
