"""PCI functions that are network cards: given to ``vfio-pci`` for a VM, and back.

A link that is a function of its own, such as one of SR-IOV's, can be handed to the guest
whole. Its driver then lets go of it, and the link is gone from the pod's namespace; when the
driver has it again, a new link is in the host's.

Standard library only and synchronous: ``delete`` gives back what a dead shim has taken.

Source: Linux ABI/testing/sysfs-bus-pci (``driver_override``, ``drivers_probe``),
Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
import os
import re

SYSFS = "/sys"
VFIO = "vfio-pci"

_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def checked(address: str) -> str:
    """Return an address, with the domain that may be left out.

    Raises:
        ValueError: it is none.
    """
    whole = address.lower() if address.count(":") > 1 else f"0000:{address.lower()}"
    if not _ADDRESS.fullmatch(whole):
        raise ValueError(f"{address!r} is no PCI address, such as 0000:03:10.1")
    return whole


def function_of(bus: str, parent: str) -> str:
    """Return the PCI address of the function that a link belongs to, "" for none.

    Args:
        bus: the bus of the link's parent device; a virtio card's is ``virtio``.
        parent: the parent's name there.
    """
    if not bus or not parent:
        return ""
    path = os.path.realpath(f"{SYSFS}/bus/{bus}/devices/{parent}")
    for name in reversed(path.split("/")):
        if _ADDRESS.fullmatch(name):
            return name
    return ""


def group_of(address: str) -> str:
    """Return the number of a function's IOMMU group, "" where no IOMMU is in use."""
    try:
        return os.path.basename(os.readlink(f"{_folder(address)}/iommu_group"))
    except OSError:
        return ""


def driver_of(address: str) -> str:
    """Return the driver that has a function, "" for none."""
    try:
        return os.path.basename(os.readlink(f"{_folder(address)}/driver"))
    except OSError:
        return ""


def take(address: str) -> None:
    """Give a function to vfio-pci.

    Raises:
        OSError: it does not exist, or vfio-pci does not take it; it may have no driver then.
    """
    if driver_of(address) == VFIO:
        return
    _write(f"{_folder(address)}/driver_override", VFIO)
    _rebind(address)
    if driver_of(address) != VFIO:
        raise OSError(errno.ENODEV, f"{VFIO} does not take it (modprobe {VFIO})")


def give_back(address: str, driver: str) -> None:
    """Give a function back to the driver it had; no error when it has it, or is gone itself.

    Args:
        address: of the function.
        driver: its name, as :func:`driver_of` said it.

    Raises:
        OSError: the kernel refuses.
    """
    if not os.path.isdir(_folder(address)):
        return
    _write(f"{_folder(address)}/driver_override", "\n")
    if driver_of(address) == driver:
        return
    _rebind(address)
    if driver_of(address) != driver:
        _write(f"{SYSFS}/bus/pci/drivers/{driver}/bind", address)


def _rebind(address: str) -> None:
    if driver_of(address):
        _write(f"{_folder(address)}/driver/unbind", address)
    _write(f"{SYSFS}/bus/pci/drivers_probe", address)


def _folder(address: str) -> str:
    return f"{SYSFS}/bus/pci/devices/{address}"


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
