"""PCI functions that a container drives itself: bound to vfio-pci, groups as device nodes.

Source: Linux Documentation/driver-api/vfio.rst, ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import block
from .children import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .children import Children
    from .loop import Loop

DRIVER = "vfio-pci"
CONTAINER = "/dev/vfio/vfio"
"""The device node that every user of a group opens besides."""

_PCI = "/sys/bus/pci"
_MODULES = (DRIVER, "vfio_iommu_type1")


async def load_driver(children: Children, pci: str = _PCI) -> None:
    """Have the kernel's driver there.

    Raises:
        TtrpcError: FAILED_PRECONDITION when the kernel has none.
    """
    for module in _MODULES:  # one that is built in is no error
        await children.output([find_program("modprobe"), "--", module])
    if not os.path.isdir(f"{pci}/drivers/{DRIVER}"):
        text = f"the guest's kernel has no driver {DRIVER}, which vfio_mode = 'vfio' needs"
        raise TtrpcError(status.FAILED_PRECONDITION, text)


async def hand_over(loop: Loop, address: str, pci: str = _PCI) -> str:
    """Bind a function to the driver; returns its group's device node.

    Args:
        loop: to wait on.
        address: the function's, in the guest.
        pci: the bus in sysfs.

    Raises:
        TtrpcError: FAILED_PRECONDITION without an IOMMU, or when the driver does not take it.
    """
    folder = f"{pci}/devices/{address}"
    if not os.path.exists(f"{folder}/iommu_group"):
        text = f"PCI device {address} is behind no IOMMU: [hypervisor.qemu] enable_iommu = true"
        raise TtrpcError(status.FAILED_PRECONDITION, text)
    if _driver(folder) != DRIVER:
        _write(f"{folder}/driver_override", DRIVER)
        if _driver(folder):
            _write(f"{folder}/driver/unbind", address)
        _write(f"{pci}/drivers_probe", address)
    if _driver(folder) != DRIVER:
        text = f"PCI device {address} is not taken by {DRIVER}, but by {_driver(folder) or 'none'}"
        raise TtrpcError(status.FAILED_PRECONDITION, text)
    node = f"/dev/vfio/{os.path.basename(os.readlink(f'{folder}/iommu_group'))}"
    return await block.wait_for(loop, lambda: node, lambda: None, f"device node {node}")


def _driver(folder: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{folder}/driver"))
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
