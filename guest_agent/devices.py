"""Devices that a container gets from the host, put into its configuration.

The host names a disk by its place (a PCI path, a SCSI address); what the container
sees is a device node whose numbers only the guest knows.
"""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from protos.lite import Message

    from .children import Children
    from .loop import Loop

_BY_ID = frozenset({"blk", "blk-ccw", "scsi"})
_BY_PATH = frozenset({"mmioblk", "nvdimm"})
_DRIVEN_HERE = "vfio-pci-gk"
_DRIVEN_BY_CONTAINER = "vfio-pci"
_ADDRESS_VARIABLES = "PCIDEVICE_"  # set by device plugins
_TYPE, _BLOCK, _CHARACTER = 0o170000, 0o060000, 0o020000
_OWN_FOLDERS = frozenset({"pts", "shm", "mqueue", "hugepages"})
_OWN_NODES = ("console", "hvc", "ptmx", "tty", "vport", "vsock")


async def add_all(
    loop: Loop, children: Children, devices: Sequence[Message], spec: dict[str, Any]
) -> None:
    """Wait for devices and write their numbers into an OCI configuration.

    Raises:
        TtrpcError: a device is malformed, of a kind not known here, or didn't appear.
    """
    places: dict[str, str] = {}
    for device in devices:
        kind, path = device["type"], device["container_path"]
        if kind == _DRIVEN_HERE:
            places.update(await _wait_for_functions(loop, device))
            continue
        if kind == _DRIVEN_BY_CONTAINER:
            functions = await _wait_for_functions(loop, device)
            await _give_groups(loop, children, path, functions.values(), spec)
            places.update(functions)
            continue
        if kind not in _BY_ID | _BY_PATH:
            text = f"devices of type {kind!r} are not implemented by this agent"
            raise TtrpcError(status.UNIMPLEMENTED, text)
        source = device["id"] if kind in _BY_ID else device["vm_path"]
        if not path or not source:
            text = f"a {kind} device needs a container path and a place"
            raise TtrpcError(status.INVALID_ARGUMENT, text)
        number = os.stat(await block.find(loop, kind, source)).st_rdev
        _patch(spec, path, "b", number)
    if places:
        _rewrite_addresses(spec, places)


async def _wait_for_functions(loop: Loop, device: Message) -> dict[str, str]:
    """Wait for PCI functions that the VM was given; their addresses by the host's.

    Raises:
        TtrpcError: one is malformed or didn't appear.
    """
    found = {}
    for option in device["options"]:
        host, separator, place = option.partition("=")
        if not host or not separator:
            text = f"bad option {option!r}: a {device['type']} device has ADDRESS=GUEST-PATH"
            raise TtrpcError(status.INVALID_ARGUMENT, text)
        found[host] = os.path.basename(await block.find_function(loop, place))
    return found


async def _give_groups(
    loop: Loop, children: Children, path: str, functions: Iterable[str], spec: dict[str, Any]
) -> None:
    """Give a container the VFIO groups of functions that it drives itself.

    A group of the host may be several of the guest: the one that the container knows takes
    the number it has here, as the path is what its user finds the group by.

    Raises:
        TtrpcError: they can't be bound (:mod:`guest_agent.vfio`).
    """
    from . import vfio  # few guests ever need it

    await vfio.load_driver(children)
    nodes = dict.fromkeys([await vfio.hand_over(loop, address) for address in functions])
    for node in nodes:
        _patch(spec, path, "c", os.stat(node).st_rdev, node)
        path = ""
    _patch(spec, vfio.CONTAINER, "c", os.stat(vfio.CONTAINER).st_rdev)


def _rewrite_addresses(spec: dict[str, Any], places: dict[str, str]) -> None:
    """Put the guest's PCI addresses where a device plugin told the container the host's."""
    process = spec.get("process", {})
    for number, variable in enumerate(process.get("env", ())):
        name, _, value = variable.partition("=")
        if name.startswith(_ADDRESS_VARIABLES):
            known = (places.get(address, address) for address in value.split(","))
            process["env"][number] = f"{name}={','.join(known)}"


def _patch(spec: dict[str, Any], path: str, kind: str, number: int, renamed: str = "") -> None:
    """Give the device at a path its numbers, and let the container use it.

    Args:
        spec: the container's.
        path: the device's there, "" for one more.
        kind: "b" or "c".
        number: of the device in the guest.
        renamed: its new path; empty for the same.
    """
    major, minor = os.major(number), os.minor(number)
    linux = spec.setdefault("linux", {})
    devices = linux.setdefault("devices", [])
    entry = next((entry for entry in devices if entry.get("path") == path), None)
    if entry is None:
        entry = {}
        devices.append(entry)
    # Of one that has no number yet no rule speaks: one without numbers is about all devices.
    old = (entry.get("major", -1), entry.get("minor", -1))
    entry.update(path=renamed or path, type=kind, major=major, minor=minor)
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    known = False
    for rule in rules:
        if rule.get("type") == kind and (rule.get("major"), rule.get("minor")) == old:
            rule.update(major=major, minor=minor)
            known = True
    if not known:
        rules.append({"allow": True, "type": kind, "major": major, "minor": minor, "access": "rwm"})


def add_nodes_of_guest(spec: dict[str, Any], folder: str = "/dev") -> None:
    """Give a container every device node of the guest that it has no node for.

    Left out are what belongs to terminals, and the ports that lead to the host.
    """
    linux = spec.setdefault("linux", {})
    nodes = linux.setdefault("devices", [])
    known = {node.get("path") for node in nodes}
    for path in _nodes(folder):
        place = f"/dev{path.removeprefix(folder)}"
        if place not in known:
            info = os.stat(path, follow_symlinks=False)
            nodes.append(
                {
                    "path": place,
                    "type": "b" if info.st_mode & _TYPE == _BLOCK else "c",
                    "major": os.major(info.st_rdev),
                    "minor": os.minor(info.st_rdev),
                    "fileMode": info.st_mode & 0o7777,
                    "uid": info.st_uid,
                    "gid": info.st_gid,
                }
            )


def _nodes(folder: str) -> list[str]:
    found: list[str] = []
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _OWN_FOLDERS:
                found += _nodes(entry.path)
        elif not entry.name.startswith(_OWN_NODES):
            kind = entry.stat(follow_symlinks=False).st_mode & _TYPE
            if kind in (_BLOCK, _CHARACTER):
                found.append(entry.path)
    return found
