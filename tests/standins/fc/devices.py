"""A microVM's devices as QEMU knows them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from typing import Any

from tests.standins.fc.fault import Fault
from tests.standins.fc.resources import Config, Drive, Net, Pmem
from tests.standins.fc.transport import Mmio, Pci
from tests.standins.qemu import Qemu, QmpError

Transport = Mmio | Pci
_SERIAL_MAX = 20
_PMEM_ALIGN = 2 << 20
_TCG_NET = {"vhost": False}


def option(arguments: dict[str, Any]) -> str:
    """Return QMP arguments as a command-line option in JSON."""
    return json.dumps(arguments)


def drive_serial(fd: int) -> str:
    """Return the serial number Firecracker makes of a backing file."""
    status = os.fstat(fd)
    return f"{status.st_dev}{status.st_rdev}{status.st_ino}"[:_SERIAL_MAX]


def drive_node(drive: Drive, node: str, fdset: int) -> dict[str, Any]:
    """Return the block node of a drive whose file is in a set of descriptors."""
    is_block = stat.S_ISBLK(os.fstat(drive.fd).st_mode)
    return {
        "driver": "raw",
        "node-name": node,
        "read-only": drive.read_only,
        "cache": {"direct": False, "no-flush": drive.config.get("cache_type") != "Writeback"},
        "file": {
            "driver": "host_device" if is_block else "file",
            "filename": f"/dev/fdset/{fdset}",
            "locking": "off",
        },
    }


def drive_front(drive: Drive, node: str, transport: Transport) -> dict[str, Any]:
    """Return a drive's front-end."""
    front = transport.place("virtio-blk", f"drive_{drive.id}")
    return {**front, "drive": node, "serial": drive_serial(drive.fd), "num-queues": 1}


def net_front(net: Net, transport: Transport) -> dict[str, Any]:
    """Return an interface's front-end."""
    front = {**transport.place("virtio-net", f"net_{net.id}"), "netdev": f"netdev_{net.id}"}
    if "guest_mac" in net.config:
        front["mac"] = net.config["guest_mac"]
    if "mtu" in net.config:
        front["host_mtu"] = net.config["mtu"]
    if transport.pci:
        front["romfile"] = ""
    return front


def net_backend(net: Net, fd: str) -> dict[str, Any]:
    """Return an interface's back-end: the tap by QEMU's name for its descriptor."""
    return {"type": "tap", "id": f"netdev_{net.id}", "fd": fd, "vhost": False}


def pmem_backend(pmem: Pmem) -> dict[str, Any]:
    """Return a pmem device's memory.

    Raises:
        Fault: this stand-in can't round a writable file up to 2 MiB.
    """
    size = os.fstat(pmem.fd).st_size
    read_only = bool(pmem.config.get("read_only"))
    path = pmem.config["path_on_host"]
    if size % _PMEM_ALIGN:
        if not read_only:
            raise Fault("stand-in: a writable pmem file must be a multiple of 2 MiB")
        path, size = _padded(pmem, size)
    return {
        "qom-type": "memory-backend-file",
        "id": f"pmemdev_{pmem.id}",
        "mem-path": path,
        "share": not read_only,
        "size": size,
    }


def _padded(pmem: Pmem, size: int) -> tuple[str, int]:
    """Copy a file to memory, padded; it stays there for as long as we run."""
    copy = os.memfd_create(pmem.id)
    offset = 0
    while sent := os.sendfile(copy, pmem.fd, offset, size - offset):
        offset += sent
    size = -(-size // _PMEM_ALIGN) * _PMEM_ALIGN
    os.ftruncate(copy, size)
    os.set_inheritable(copy, True)
    return f"/proc/{os.getpid()}/fd/{copy}", size


def throttle(config: Config | None) -> dict[str, int]:
    """Return QEMU's I/O throttle for a drive's rate limiter."""
    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    for bucket, name in (("bandwidth", "bps"), ("ops", "iops")):
        found = (config or {}).get(bucket)
        if found and found["size"] and found["refill_time"]:
            limits[name] = max(1, found["size"] * 1000 // found["refill_time"])
    return limits


def swap_drive(qemu: Qemu, drive: Drive, old_node: str, new_node: str) -> None:
    """Put another file behind a running drive and tell the guest.

    Raises:
        QmpError: QEMU refused.
    """
    path = f"/machine/peripheral/drive_{drive.id}"

    def attach(node: str) -> None:
        qemu.execute("qom-set", path=path, property="drive", value=node)

    fdset = qemu.run("add-fd", {}, drive.fd)["fdset-id"]
    qemu.run("blockdev-add", drive_node(drive, new_node, fdset))
    if drive.read_only:
        _announce(qemu, attach, os.lseek(drive.fd, 0, os.SEEK_END))
        attach(new_node)
    else:
        attach(new_node)
        # QEMU tells a guest of a new size only when it changes one itself.
        size = -(-os.lseek(drive.fd, 0, os.SEEK_END) // 512) * 512
        qemu.execute("block_resize", node_name=new_node, size=size)
    qemu.execute("blockdev-del", node_name=old_node)


def _announce(qemu: Qemu, attach: Callable[[str], None], size: int) -> None:
    """Make QEMU announce a size, by a scratch file, for a node that can't be resized."""
    scratch = os.memfd_create("size")
    try:
        size = -(-size // 512) * 512
        os.ftruncate(scratch, size)
        fdset = qemu.run("add-fd", {}, scratch)["fdset-id"]
        file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": "off"}
        qemu.run("blockdev-add", {"driver": "raw", "node-name": "scratch", "file": file})
        attach("scratch")
        qemu.execute("block_resize", node_name="scratch", size=size)
    finally:
        os.close(scratch)


def forget_scratch(qemu: Qemu) -> None:
    """Remove the scratch node, if there is one."""
    try:
        qemu.execute("blockdev-del", node_name="scratch")
    except QmpError:
        return
