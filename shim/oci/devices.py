"""Device nodes and device rules of a container in the VM.

A device number means something else in the guest unless Linux assigns it for good,
so only those nodes are kept, and devices that were attached to the VM get the numbers
they have there.

Source: Linux admin-guide/devices.txt; OCI runtime-spec "Default Devices".
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)

_FIXED_CHARACTER_DEVICES = frozenset(
    {(1, minor) for minor in (3, 5, 7, 8, 9, 11)}  # null zero full random urandom kmsg
    | {(5, 0), (5, 1), (5, 2)}  # tty console ptmx
    | {(10, minor) for minor in (200, 229, 232, 237)}  # tun fuse kvm loop-control
)

# Character majors below are assigned for good; those of 10 (misc) are so one by one, and
# block majors name disks, which are others here.
_FIXED_MAJORS = frozenset(range(234)) - {10}
_WILDCARD = -1

_ANY: dict[str, Any] = {"allow": True, "access": "rwm"}
_DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
    {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
)


@dataclass(frozen=True, slots=True)
class HostDisk:
    """A block device of the host that a container is to have.

    Attributes:
        path: its path in the container.
        major, minor: its numbers on the host.
        writable: the container may write to it.
    """

    path: str
    major: int
    minor: int
    writable: bool


def host_disks(spec: Mapping[str, Any]) -> list[HostDisk]:
    """List the block devices that a spec asks for.

    A privileged container's spec has every device of the host under its own name. Those
    are not asked for: the VM's privileged container has the devices of the VM. A volume
    comes under a name of the pod's choice, and is.
    """
    linux = spec.get("linux", {})
    rules = linux.get("resources", {}).get("devices", ())
    privileged = bool(rules) and _allows_everything(rules[-1])
    found = []
    for device in linux.get("devices", ()):
        major, minor = device.get("major", 0), device.get("minor", 0)
        if device.get("type") != "b":
            continue
        if privileged and _is_hosts_own(device["path"], major, minor):
            _log.debug("device %s of the host is not in the VM", device["path"])
            continue
        access = _access(rules, major, minor)
        found.append(HostDisk(device["path"], major, minor, "w" in access))
    return found


def _is_hosts_own(path: str, major: int, minor: int) -> bool:
    try:
        info = os.stat(path)
    except OSError:
        return False
    return stat.S_ISBLK(info.st_mode) and info.st_rdev == os.makedev(major, minor)


def _access(rules: Sequence[Mapping[str, Any]], major: int, minor: int) -> str:
    """What the last rule about exactly this block device allows; everything without one."""
    access = "rwm"
    for rule in rules:
        if (
            rule.get("allow")
            and rule.get("type") == "b"
            and (rule.get("major"), rule.get("minor")) == (major, minor)
        ):
            access = rule.get("access", "rwm")
    return access


def guest_devices(
    devices: Iterable[Mapping[str, Any]], attached: Mapping[str, tuple[int, int]]
) -> list[dict[str, Any]]:
    """Choose and renumber the device nodes that exist in the guest.

    Args:
        devices: ``linux.devices`` of the host's spec.
        attached: path in the container to guest major and minor; one that ``devices``
            does not have is a disk that came as a mount.
    """
    result = []
    named = set()
    for device in devices:
        path = device.get("path", "")
        named.add(path)
        number = (device.get("major", 0), device.get("minor", 0))
        if path in attached:
            major, minor = attached[path]
            result.append({**device, "major": major, "minor": minor})
        elif device.get("type") == "p" or (
            device.get("type") in ("c", "u") and number in _FIXED_CHARACTER_DEVICES
        ):
            result.append(dict(device))
        else:
            _log.debug("device %s (%s:%s) of the host is not in the VM", path, *number)
    for path, (major, minor) in attached.items():
        if path not in named:
            numbers = {"major": major, "minor": minor}
            result.append({"path": path, "type": "b", **numbers, "fileMode": 0o660})
    return result


def device_rules(
    rules: Sequence[Mapping[str, Any]],
    devices: Iterable[Mapping[str, Any]],
    *,
    host_devices: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Build the device rules: those of the host's spec that mean something in the guest.

    A rule about all devices stays as it is, one about a device that has a node in the
    container gets the node's number in the guest, and one about numbers that Linux assigns
    for good stays. The rest is about the host's own devices and goes. What every container
    may use by default comes after them, unless everything is allowed.

    Args:
        rules: ``linux.resources.devices`` of the host's spec.
        devices: the nodes the container gets, from :func:`guest_devices`.
        host_devices: ``linux.devices`` of the host's spec.
    """
    if rules and _allows_everything(rules[-1]):
        return [dict(_ANY)]
    present = {device["path"]: device for device in devices if device.get("type") in ("c", "b")}
    numbers = {
        (device.get("type"), device.get("major"), device.get("minor")): present[device["path"]]
        for device in host_devices
        if device.get("path") in present
    }
    access = {
        device["path"]: _access(rules, device.get("major", 0), device.get("minor", 0))
        for device in host_devices
        if device.get("type") == "b" and "path" in device
    }
    kept = [rule for rule in (_guest_rule(rule, numbers) for rule in rules) if rule is not None]
    own = (
        {
            "allow": True,
            "type": device["type"],
            "major": device["major"],
            "minor": device["minor"],
            "access": access.get(device["path"], "rwm"),
        }
        for device in present.values()
    )
    return [dict(_DEFAULT_RULES[0]), *kept, *map(dict, _DEFAULT_RULES[1:]), *own]


def is_privileged(linux: Mapping[str, Any]) -> bool:
    """Whether a container is to have every device there is, as privileged ones are.

    Its spec lists the host's nodes and allows all; here the guest's stand for them.

    Args:
        linux: the spec's ``linux`` section.
    """
    rules = linux.get("resources", {}).get("devices", ())
    return bool(linux.get("devices")) and bool(rules) and _allows_everything(rules[-1])


def _guest_rule(
    rule: Mapping[str, Any], numbers: Mapping[tuple[Any, Any, Any], Mapping[str, Any]]
) -> dict[str, Any] | None:
    kind = rule.get("type", "a")
    major, minor = rule.get("major", _WILDCARD), rule.get("minor", _WILDCARD)
    if kind == "a" or major == _WILDCARD:
        return dict(rule)
    if device := numbers.get((kind, major, minor)):
        return {**rule, "major": device["major"], "minor": device["minor"]}
    fixed = major in _FIXED_MAJORS or (major, minor) in _FIXED_CHARACTER_DEVICES
    return dict(rule) if kind == "c" and fixed else None


def _allows_everything(rule: Mapping[str, Any]) -> bool:
    return (
        bool(rule.get("allow"))
        and rule.get("type", "a") == "a"
        and rule.get("major", _WILDCARD) == _WILDCARD
        and rule.get("minor", _WILDCARD) == _WILDCARD
        and set(rule.get("access", "rwm")) >= set("rwm")
    )
