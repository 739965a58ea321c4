"""Root file systems that Kata's runtime-rs sends as a group of disks (``erofs.multi-layer``).

Each member is a layer, read-only erofs, or the one ext4 disk for changes; together they are
an overlay at the mount point of that disk, or of the first layer where there is none. Here
the group becomes storages that need no further knowledge.

Source: Kata's agent, multi_layer_erofs.rs (the ``X-kata.`` options).
"""

from __future__ import annotations

import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

DRIVER = "erofs.multi-layer"
MEMBER = "X-kata.multi-layer=true"
FOLDER = "/run/kata-containers/sandbox/layers"
_CREATE = "io.katacontainers.volume.overlayfs.create_directory="
_PARTITION = "X-kata.partition-number="
_MKDIR = "X-kata.mkdir.path="
_UPPER, _LOWER = "X-kata.overlay-upper", "X-kata.overlay-lower"


def is_member(storage: Mapping[str, Any]) -> bool:
    """Whether a storage belongs to such a group."""
    return storage["driver"] == DRIVER or MEMBER in storage["options"]


def ungrouped(storages: Sequence[Mapping[str, Any]], container_dir: str) -> list[Any]:
    """Put storages in a group's place: a mount of each disk, and an overlay of them.

    Args:
        storages: a request's list, with one group in it.
        container_dir: folder of the container that asks.

    Raises:
        TtrpcError: INVALID_ARGUMENT, the group makes no root file system; UNIMPLEMENTED,
            it is to be protected by dm-verity.
    """
    members = [storage for storage in storages if is_member(storage)]
    uppers = [s for s in members if s["fstype"] == "ext4" and _LOWER not in s["options"]]
    lowers = [s for s in members if s not in uppers]
    if len(uppers) > 1 or not lowers or any(s["fstype"] != "erofs" for s in lowers):
        text = f"{DRIVER}: want erofs layers and at most one ext4 disk for changes"
        raise TtrpcError(status.INVALID_ARGUMENT, text)
    if any(option.startswith("X-kata.dmverity") for s in members for option in s["options"]):
        text = f"{DRIVER}: dm-verity is not implemented by this agent"
        raise TtrpcError(status.UNIMPLEMENTED, text)
    if any(_partition(s) for s in lowers):
        lowers.sort(key=_partition)  # the lowest number is the topmost layer
    base = f"{FOLDER}/{os.path.basename(container_dir) or 'sandbox'}"
    top = f"{base}/upper"
    points = [f"{base}/lower-{number}" for number in range(len(lowers))]
    result = [_disk(s, point) for s, point in zip(lowers, points, strict=True)]
    result += [_disk(s, top) for s in uppers]
    made = [f"{top}/upper", f"{top}/work", *_folders(members, top, points[0])]
    overlay = {
        "driver": "overlayfs",
        "source": "overlay",
        "fstype": "overlay",
        "options": [f"lowerdir={':'.join(points)}", f"upperdir={made[0]}", f"workdir={made[1]}"],
        "driver_options": [f"{_CREATE}{path}" for path in made],
        "mount_point": (uppers or lowers)[0]["mount_point"],
        "shared": False,
        "fs_group": None,
    }
    others = [storage for storage in storages if not is_member(storage)]
    return [*others, *result, overlay]


def _disk(storage: Mapping[str, Any], point: str) -> dict[str, Any]:
    options = [option for option in storage["options"] if not option.startswith("X-kata.")]
    driver = storage["driver"]
    if driver == DRIVER:
        driver = "scsi" if ":" in storage["source"] else "blk"
    if storage["fstype"] == "erofs" and "ro" not in options:
        options.append("ro")
    return {
        "driver": driver,
        "source": storage["source"],
        "fstype": storage["fstype"],
        "options": options,
        "driver_options": [],
        "mount_point": point,
        "shared": False,
        "fs_group": None,
        "partition": _partition(storage),
    }


def _partition(storage: Mapping[str, Any]) -> int:
    for option in storage["options"]:
        if option.startswith(_PARTITION):
            number = option.removeprefix(_PARTITION)
            if not number.isdigit():
                raise TtrpcError(status.INVALID_ARGUMENT, f"{DRIVER}: bad option {option!r}")
            return int(number)
    return 0


def _folders(members: Sequence[Mapping[str, Any]], top: str, first: str) -> list[str]:
    """What is to be made in the disk for changes; a layer can't be written."""
    found = []
    for option in (option for member in members for option in member["options"]):
        if not option.startswith(_MKDIR):
            continue
        path = option.removeprefix(_MKDIR).partition(":")[0]
        path = path.replace("{{ mount 0 }}", top).replace("{{ mount 1 }}", first)
        path = os.path.normpath(path)
        if not path.startswith(f"{top}/"):
            raise TtrpcError(status.INVALID_ARGUMENT, f"{DRIVER}: bad option {option!r}")
        found.append(path)
    return found
