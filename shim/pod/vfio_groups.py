"""PCI devices of the host that a container asks for by their VFIO groups.

A group is what an IOMMU can keep apart: its functions go to one VM together, each bound to
``vfio-pci`` by the administrator or a device plugin.

Source: Linux Documentation/driver-api/vfio.rst, ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shim.errors import FailedPrecondition, InvalidArgument, NotFound
from shim.oci.devices import is_privileged
from vmm.spec import VfioDevice

SYSFS = Path("/sys")
FOLDER = "/dev/vfio/"
_CONTAINER = "/dev/vfio/vfio"  # opens all groups and is no device itself
_GROUP = re.compile(r"/dev/vfio/(\d+)")
_ADDRESS = re.compile(r"(?:([0-9A-Fa-f]{4}):)?([0-9A-Fa-f]{2}:[01][0-9A-Fa-f]\.[0-7])")
_BRIDGE = "0x06"  # PCI class: host bridges, ports


def vfio_groups(spec: Mapping[str, Any]) -> list[str]:
    """List the VFIO groups that a spec's devices name, by their paths on the host.

    A privileged container's spec has every device of the host, so those are not asked for.

    Raises:
        InvalidArgument: a device below ``/dev/vfio`` is no group.
    """
    linux = spec.get("linux", {})
    if is_privileged(linux):
        return []
    found = []
    for device in linux.get("devices", ()):
        path = device.get("path", "")
        if not path.startswith(FOLDER) or path == _CONTAINER:
            continue
        if not _GROUP.fullmatch(path):
            raise InvalidArgument(
                f"device {path}: only VFIO groups, {FOLDER}NUMBER, can be given to a VM"
            )
        found.append(path)
    return found


def functions_of(path: str, sysfs: Path = SYSFS) -> list[str]:
    """Return the PCI addresses of a group's functions, bridges left out.

    Args:
        path: the group's device node.
        sysfs: where sysfs is mounted.

    Raises:
        NotFound: there is no such group.
        FailedPrecondition: a function of it has another driver than vfio-pci.
    """
    match = _GROUP.fullmatch(path)
    group = match[1] if match else ""
    folder = sysfs / "kernel/iommu_groups" / group / "devices"
    try:
        names = sorted(os.listdir(folder)) if group else []
    except FileNotFoundError:
        names = []
    addresses = [name for name in names if not _is_bridge(folder / name)]
    if not addresses:
        raise NotFound(f"{path}: there is no VFIO group with PCI devices in {folder}")
    for address in addresses:
        driver = _driver(folder / address)
        if driver != "vfio-pci":
            raise FailedPrecondition(
                f"{path}: {address} has the driver {driver or 'none'}: all devices of a group "
                "must be bound to vfio-pci (driverctl set-override, or driver_override in sysfs)"
            )
    return addresses


def function_at(device: str, sysfs: Path = SYSFS) -> str:
    """Return the full PCI address of the one function that a device's name means.

    Args:
        device: a group of one function, or an address, with its domain or without.
        sysfs: where sysfs is mounted.

    Raises:
        InvalidArgument: it is no name of one function.
        NotFound, FailedPrecondition: as :func:`functions_of`, for its group.
    """
    if _GROUP.fullmatch(device):
        functions = functions_of(device, sysfs)
        if len(functions) > 1:
            raise InvalidArgument(f"{device} has {', '.join(functions)}: name one of them")
        return functions[0]
    match = _ADDRESS.fullmatch(device)
    if match is None:
        raise InvalidArgument(f"{device!r} is neither a VFIO group nor a PCI address")
    address = f"{match[1] or '0000'}:{match[2]}".lower()
    try:
        group = os.path.basename(os.readlink(sysfs / "bus/pci/devices" / address / "iommu_group"))
    except OSError as error:
        raise NotFound(f"PCI device {address}: it is not there, or has no IOMMU") from error
    functions_of(f"{FOLDER}{group}", sysfs)
    return address


def vfio_device(address: str) -> VfioDevice:
    """Return the device of a VM that a function of the host becomes."""
    return VfioDevice(f"vfio-{re.sub('[:.]', '-', address)}", address)


def _is_bridge(folder: Path) -> bool:
    try:
        return (folder / "class").read_text().startswith(_BRIDGE)
    except OSError:
        return False


def _driver(folder: Path) -> str:
    try:
        return os.path.basename(os.readlink(folder / "driver"))
    except OSError:
        return ""
