"""Finding the guest's device node of a disk that the host attached.

Source: sysfs layout of PCI, CCW, virtio and SCSI block devices; Kata's guest PCI paths.
"""

from __future__ import annotations

import errno
import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop import Loop

timeout_seconds = 3.0
_POLL_SECONDS = 0.01
# Devices behind a port that reports no hot-plug event appear after a rescan only.
_RESCAN_AFTER = 0.3
_PXB_BUS = 0x20


def pci_address_steps(path: str) -> tuple[str, list[str]]:
    """Split a guest PCI path into the root bus and the "device.function" of each step.

    "02/01" gives ("0000:00", ["02.0", "01.0"]); a first element from 0x20 on is the
    number of an expander's root bus.

    Raises:
        TtrpcError: INVALID_ARGUMENT.
    """
    bus = 0
    steps = []
    for position, element in enumerate(path.split("/")):
        slot, _, function = element.partition(".")
        try:
            number, part = int(slot, 16), int(function or "0", 16)
        except ValueError:
            raise TtrpcError(status.INVALID_ARGUMENT, f"bad PCI path {path!r}") from None
        if not position and number >= _PXB_BUS:
            bus = number
        elif number > 0x1F or part > 7:
            raise TtrpcError(status.INVALID_ARGUMENT, f"bad PCI path {path!r}")
        else:
            steps.append(f"{number:02x}.{part}")
    return f"0000:{bus:02x}", steps


def pci_folder(path: str) -> str:
    """The sysfs folder of the device at a guest PCI path, "" while there is none."""
    root, steps = pci_address_steps(path)
    folder = _root_folder(root)
    for step in steps:
        try:
            matches = [name for name in os.listdir(folder) if _is_step(name, step)]
        except FileNotFoundError:
            return ""
        if not matches:
            return ""
        folder = f"{folder}/{matches[0]}"
    return folder


def _root_folder(bus: str) -> str:
    """The sysfs folder of a root bus: below its bridge, where a device tree names one."""
    folder = f"/sys/devices/pci{bus}"
    if os.path.isdir(folder):
        return folder
    return os.path.dirname(os.path.dirname(os.path.realpath(f"/sys/class/pci_bus/{bus}")))


def _is_step(name: str, step: str) -> bool:
    """Whether "0000:01:02.0" is the device "02.0" of whatever bus."""
    return name.count(":") == 2 and name.endswith(f":{step}")


def _first(folder: str) -> str:
    try:
        return min(os.listdir(folder), default="")
    except FileNotFoundError:
        return ""


def is_ccw(place: str) -> bool:
    """Whether a place is an id of s390's channel bus, like "0.0.001a"."""
    return place.count(".") == 2 and place.replace(".", "").isalnum()


def folder_at(place: str) -> str:
    """The sysfs folder of the device at a PCI path or a CCW id, "" while there is none."""
    if not is_ccw(place):
        return pci_folder(place)
    try:
        # The folder that the link leads to is the one with the virtio device in it.
        return os.path.realpath(f"/sys/bus/ccw/devices/{place}", strict=True)
    except FileNotFoundError:
        return ""


def _node_at(place: str) -> str:
    folder = folder_at(place)
    if not folder:
        return ""
    for name in os.listdir(folder):
        if name.startswith("virtio"):
            disk = _first(f"{folder}/{name}/block")
            if disk:
                return f"/dev/{disk}"
    return _nvme(folder)


def _nvme(folder: str) -> str:
    controller = _first(f"{folder}/nvme")
    disks = os.listdir(f"{folder}/nvme/{controller}") if controller else []
    return next((f"/dev/{name}" for name in disks if name.startswith("nvme")), "")


def _node_of_scsi(address: str) -> str:
    scsi_id, _, lun = address.partition(":")
    for name in (
        os.listdir("/sys/class/scsi_device") if os.path.isdir("/sys/class/scsi_device") else ()
    ):
        parts = name.split(":")
        if len(parts) == 4 and (parts[2], parts[3]) == (str(int(scsi_id)), str(int(lun))):
            disk = _first(f"/sys/class/scsi_device/{name}/device/block")
            if disk:
                return f"/dev/{disk}"
    return ""


def _rescan_scsi() -> None:
    base = "/sys/class/scsi_host"
    for host in os.listdir(base) if os.path.isdir(base) else ():
        with open(f"{base}/{host}/scan", "w") as file:
            file.write("- - -")


def rescan_pci() -> None:
    """Have the kernel look for devices on all PCI buses."""
    try:
        with open("/sys/bus/pci/rescan", "w") as file:
            file.write("1")
    except FileNotFoundError:
        pass  # a machine without PCI


def remove_pci(path: str) -> None:
    """Let go of the device at a guest PCI path; nothing happens when there is none."""
    folder = pci_folder(path)
    if folder:
        with open(f"{folder}/remove", "w") as file:
            file.write("1")


async def find(loop: Loop, driver: str, source: str) -> str:
    """Wait for a disk and return its device node.

    Args:
        driver: "blk", "blk-ccw", "mmioblk", "nvdimm" or "scsi".
        source: a guest PCI path, a CCW id, a device node, or "id:lun" of a SCSI disk.

    Raises:
        TtrpcError: INVALID_ARGUMENT, or NOT_FOUND when it didn't appear in time.
    """
    rescan: Callable[[], None] = rescan_pci
    if source.startswith("/dev/"):

        def look() -> str:
            return source if os.path.exists(source) and not _is_placeholder(source) else ""
    elif driver in ("blk", "blk-ccw"):
        if is_ccw(source) != (driver == "blk-ccw"):
            raise TtrpcError(status.INVALID_ARGUMENT, f"bad place {source!r} of a {driver} disk")
        if driver == "blk":
            pci_address_steps(source)

        def look() -> str:
            return _node_at(source)
    elif driver == "scsi":
        if not source.replace(":", "", 1).isdigit() or ":" not in source:
            raise TtrpcError(status.INVALID_ARGUMENT, f"bad SCSI address {source!r}")
        rescan = _rescan_scsi

        def look() -> str:
            return _node_of_scsi(source)
    else:
        raise TtrpcError(status.INVALID_ARGUMENT, f"{driver} source {source!r} is no device")

    def look_for_open() -> str:
        node = look()
        return node if node and _opens(node) else ""

    return await wait_for(loop, look_for_open, rescan, f"disk {source} ({driver})")


async def find_partition(loop: Loop, disk: str, number: int) -> str:
    """Wait for a partition of a disk and return its device node.

    Raises:
        TtrpcError: NOT_FOUND when it didn't appear in time.
    """
    node = f"{disk}{'p' if disk[-1].isdigit() else ''}{number}"

    def look() -> str:
        return node if os.path.exists(node) and _opens(node) else ""

    return await wait_for(loop, look, lambda: None, f"partition {node}")


async def find_function(loop: Loop, path: str) -> str:
    """Wait for a PCI function at a guest PCI path and return its sysfs folder.

    Raises:
        TtrpcError: INVALID_ARGUMENT, or NOT_FOUND when it didn't appear in time.
    """
    pci_address_steps(path)
    return await wait_for(loop, lambda: pci_folder(path), rescan_pci, f"PCI device {path}")


def _opens(node: str) -> bool:
    """Whether there is a disk behind a node; the kernel makes the node a little earlier."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENXIO)
    return True


def _is_placeholder(node: str) -> bool:
    """Whether a disk still has the one sector of a drive that waits for its real file."""
    try:
        with open(f"/sys/class/block/{os.path.basename(node)}/size") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


async def wait_for(
    loop: Loop,
    look: Callable[[], str],
    rescan: Callable[[], None],
    what: str,
    seconds: float = 0.0,
) -> str:
    """Call `look` until it returns something, with one rescan on the way.

    Args:
        seconds: how long, 0 for the hot-plug timeout.

    Raises:
        TtrpcError: NOT_FOUND after that.
    """
    limit = seconds or timeout_seconds
    waited = 0.0
    rescanned = False
    while True:
        found = look()
        if found and (not found.startswith("/dev/") or os.path.exists(found)):
            return found
        if waited >= limit:
            text = f"{what} did not appear within {limit:g} s"
            raise TtrpcError(status.NOT_FOUND, text)
        if waited >= _RESCAN_AFTER and not rescanned:
            rescanned = True
            rescan()
        await loop.sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS
