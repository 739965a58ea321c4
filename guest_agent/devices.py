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
    from collections.abc import Sequence
    from typing import Any

    from protos.lite import Message

    from .loop import Loop

_BY_ID = frozenset({"blk", "scsi"})
_BY_PATH = frozenset({"mmioblk", "nvdimm"})


async def add_all(loop: Loop, devices: Sequence[Message], spec: dict[str, Any]) -> None:
    """Wait for devices and write their numbers into an OCI configuration.

    Raises:
        TtrpcError: a device is malformed, of a kind not known here, or didn't appear.
    """
    for device in devices:
        kind, path = device["type"], device["container_path"]
        if kind not in _BY_ID | _BY_PATH:
            text = f"devices of type {kind!r} are not implemented by this agent"
            raise TtrpcError(status.UNIMPLEMENTED, text)
        source = device["id"] if kind in _BY_ID else device["vm_path"]
        if not path or not source:
            text = f"a {kind} device needs a container path and a place"
            raise TtrpcError(status.INVALID_ARGUMENT, text)
        number = os.stat(await block.find(loop, kind, source)).st_rdev
        _patch(spec, path, os.major(number), os.minor(number))


def _patch(spec: dict[str, Any], path: str, major: int, minor: int) -> None:
    """Give the device at a path its numbers, and let the container use it."""
    linux = spec.setdefault("linux", {})
    devices = linux.setdefault("devices", [])
    entry = next((entry for entry in devices if entry.get("path") == path), None)
    if entry is None:
        entry = {"path": path}
        devices.append(entry)
    old = (entry.get("major"), entry.get("minor"))
    entry.update(type="b", major=major, minor=minor)
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    known = False
    for rule in rules:
        if rule.get("type") == "b" and (rule.get("major"), rule.get("minor")) == old:
            rule.update(major=major, minor=minor)
            known = True
    if not known:
        rules.append({"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"})
