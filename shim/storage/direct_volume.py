"""Direct-assigned volumes: disks that a CSI driver leaves for the guest to mount.

The driver (or ``katapy direct-volume add``) writes a mountInfo.json for the path at
which kubelet expects the volume, and mounts nothing on the host. The files are Kata's,
so its CSI drivers work as they are.

Source: Kata's direct block device assignment design; ``kata-runtime direct-volume``; the
volume types of its runtime-rs.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shim.errors import InvalidArgument, NotFound, Unimplemented

DIRECT_VOLUMES = "/run/kata-containers/shared/direct-volumes"
"""Where the descriptions are, one directory a volume."""
INFO_NAME = "mountInfo.json"

Kind = Literal["block", "vhost-user", "vfio"]
"""A device or image of the host, a disk that a daemon serves, or a PCI function."""

_KINDS: Mapping[str, Kind] = {
    "block": "block",
    "directvol": "block",
    "spdkvol": "vhost-user",
    "spoolvol": "vhost-user",
    "vfiovol": "vfio",
}
_SOCKET_SCHEMES = ("spdk://", "spool://")
_QUEUES_MAX = 256
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_POLICIES = {"": 0, "Always": 0, "OnRootMismatch": 1}


@dataclass(frozen=True, slots=True)
class DirectVolume:
    """What the description says.

    Attributes:
        path: the volume path on the host that it stands for.
        device: block device or image file; the daemon's socket; a PCI address, or the path
            of a VFIO group of one.
        fstype: its file system.
        options: mount options.
        group: fsGroup, None without one.
        group_policy: 0 to apply it always, 1 only when the root has another one.
        kind: what the device is.
        queues: request queues of a daemon's disk.
        create: make its file system first, if there is nothing on it.
    """

    path: str
    device: str
    fstype: str
    options: tuple[str, ...] = ()
    group: int | None = None
    group_policy: int = field(default=0)
    kind: Kind = "block"
    queues: int = 1
    create: bool = False


def directory_of(path: str, base: str = DIRECT_VOLUMES) -> str:
    """The directory that describes the volume at ``path``."""
    return f"{base}/{base64.urlsafe_b64encode(os.fsencode(path)).decode()}"


def find(path: str, base: str = DIRECT_VOLUMES) -> DirectVolume | None:
    """Read the description of the volume at ``path``; None when there is none.

    Raises:
        InvalidArgument, Unimplemented: as :func:`parse`.
    """
    name = f"{directory_of(path, base)}/{INFO_NAME}"
    try:
        with open(name, "rb") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == 36:  # ENAMETOOLONG: no volume can have such a path
            return None
        raise InvalidArgument(f"{name}: {error.strerror}") from error
    return parse(path, text, name)


def parse(path: str, text: bytes, origin: str) -> DirectVolume:
    """Parse a mountInfo.json.

    Args:
        path: the volume path it stands for.
        text: its content.
        origin: what to call it in errors.

    Raises:
        InvalidArgument: it is malformed.
        Unimplemented: a volume type or a metadata key that is not served here.
    """
    try:
        info = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{origin}: {error}") from error
    if not isinstance(info, dict):
        raise InvalidArgument(f"{origin}: the top level must be an object")
    word = info.get("volume-type", "block")
    if word not in _KINDS:
        served = ", ".join(_KINDS)
        raise Unimplemented(f"{origin}: volume-type {word!r}; what is served: {served}")
    kind = _KINDS[word]
    device, fstype = info.get("device", ""), info.get("fstype", "")
    options = info.get("options") or []
    if kind == "vhost-user" and isinstance(device, str):
        for scheme in _SOCKET_SCHEMES:
            device = device.removeprefix(scheme)
    if not isinstance(device, str) or not (device.startswith("/") or kind == "vfio"):
        raise InvalidArgument(f"{origin}: device must be an absolute path")
    if not isinstance(fstype, str) or not fstype:
        raise InvalidArgument(f"{origin}: fstype is missing")
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise InvalidArgument(f"{origin}: options must be a list of strings")
    metadata = info.get("metadata") or {}
    return described_volume(path, device, fstype, options, metadata, origin, kind)


def described_volume(
    path: str,
    device: str,
    fstype: str,
    options: Sequence[str],
    metadata: Any,
    origin: str,
    kind: Kind = "block",
) -> DirectVolume:
    """Put a description together; its metadata is checked here.

    Raises:
        InvalidArgument, Unimplemented: as :func:`parse`.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidArgument(f"{origin}: metadata must be an object")
    group, policy = _group(metadata, origin)
    queues = str(metadata.get("num_queues", "1"))
    if not queues.isascii() or not queues.isdigit() or not 0 < int(queues) <= _QUEUES_MAX:
        raise InvalidArgument(f"{origin}: num_queues must be a number from 1 to {_QUEUES_MAX}")
    create = str(metadata.get("createFilesystem", "false")).lower()
    if create not in _BOOLEANS:
        raise InvalidArgument(f"{origin}: createFilesystem must be true or false")
    if _BOOLEANS[create] and (fstype != "ext4" or kind != "block"):
        raise Unimplemented(f"{origin}: createFilesystem is for ext4 on a device or image file")
    return DirectVolume(
        path,
        device,
        fstype,
        tuple(options),
        group,
        policy,
        kind=kind,
        queues=int(queues),
        create=_BOOLEANS[create],
    )


def _group(metadata: Mapping[str, Any], origin: str) -> tuple[int | None, int]:
    if metadata.get("encryptionKey"):
        raise Unimplemented(f"{origin}: encryptionKey is not implemented")
    policy = metadata.get("fsGroupChangePolicy", "")
    if policy not in _POLICIES:
        raise InvalidArgument(
            f"{origin}: fsGroupChangePolicy {policy!r} must be Always or OnRootMismatch"
        )
    text = metadata.get("fsGroup", "")
    if text == "":
        return None, _POLICIES[policy]
    if not str(text).isascii() or not str(text).isdigit():
        raise InvalidArgument(f"{origin}: fsGroup {text!r} must be a number")
    return int(text), _POLICIES[policy]


def add(path: str, text: bytes, base: str = DIRECT_VOLUMES) -> None:
    """Describe the volume at ``path``, as a CSI driver's NodePublishVolume does.

    Raises:
        InvalidArgument, Unimplemented: as :func:`parse`; nothing is written.
    """
    parse(path, text, "mount info")
    directory = directory_of(path, base)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = f"{directory}/.{INFO_NAME}.tmp"
    with open(temporary, "wb") as file:
        file.write(text)
    os.rename(temporary, f"{directory}/{INFO_NAME}")


def remove(path: str, base: str = DIRECT_VOLUMES) -> None:
    """Forget the volume at ``path``; not described is fine."""
    directory = directory_of(path, base)
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        os.unlink(f"{directory}/{name}")
    if os.path.isdir(directory):
        os.rmdir(directory)


def user_file(path: str, sandbox_id: str, base: str = DIRECT_VOLUMES) -> str:
    """The file beside a volume's description that says which sandbox uses it."""
    return f"{directory_of(path, base)}/{sandbox_id}"


def user_of(path: str, base: str = DIRECT_VOLUMES) -> str:
    """The id of a sandbox that uses the volume at ``path``.

    Raises:
        NotFound: it is not described, or nobody uses it.
    """
    directory = directory_of(path, base)
    names = os.listdir(directory) if os.path.isdir(directory) else []
    for name in sorted(names):
        if name != INFO_NAME and not name.startswith("."):
            return name
    raise NotFound(f"no sandbox uses the volume {path}")
