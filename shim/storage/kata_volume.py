"""What snapshotters and CSI drivers tell Kata in mount options, in words of our own.

``io.katacontainers.fs-opt.`` options name a root file system's layers, and files that are
disks; ``io.katacontainers.volume=`` has a description in base64 (KataVirtualVolume). Of the
latter Kata itself serves images that the guest pulls; here it is those that are disks.

Source: Kata's Go runtime (copyLayersToMounts, createBlockDevices) and its
libs/kata-types/src/mount.rs.
"""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shim.errors import InvalidArgument, Unimplemented
from shim.storage.direct_volume import DirectVolume, described_volume
from shim.storage.options import Mount

VOLUME = "io.katacontainers.volume="
IS_FILE = "io.katacontainers.fs-opt.block_device=file"
OVERLAY_RW = "io.katacontainers.fs-opt.overlay-rw"
"""Has the agent put a layer of the guest's memory on top."""

_PREFIX = "io.katacontainers.fs-opt."
_LAYER = f"{_PREFIX}layer="
_IS_LAYER = f"{_PREFIX}is-layer"
_ROOT_HASH = f"{_PREFIX}root-hash="
_LOWER = "lowerdir="
_MISSING = {
    "image_guest_pull": "the guest has no program that pulls images",
    **dict.fromkeys(
        ("image_nydus_fs", "layer_nydus_fs", "image_nydus_block", "layer_nydus_block"),
        "there is no nydusd to serve RAFS images",
    ),
}


@dataclass(frozen=True, slots=True)
class Described:
    """A disk as a KataVirtualVolume describes it.

    Attributes:
        kind: ``direct_block``, ``image_raw_block`` or ``layer_raw_block``.
        source: block device or image file.
        fstype: its file system.
        options: mount options.
        metadata: what there is to know of a volume besides.
    """

    kind: str
    source: str
    fstype: str
    options: tuple[str, ...]
    metadata: dict[str, Any]


def is_for_kata(options: Sequence[str]) -> bool:
    """Whether there is anything of this in mount options."""
    return any(option.startswith((VOLUME, _PREFIX)) for option in options)


def parse_volume(option: str) -> Described:
    """Read an option ``io.katacontainers.volume=``.

    Raises:
        InvalidArgument: it is malformed.
        Unimplemented: a kind of volume, or a protection of it, that is not served.
    """
    try:
        text = base64.b64decode(option.removeprefix(VOLUME), validate=True)
        volume = json.loads(text)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"mount option {VOLUME}…: {error}") from error
    if not isinstance(volume, dict):
        raise InvalidArgument(f"mount option {VOLUME}…: not an object")
    kind = str(volume.get("volume_type", ""))
    if kind in _MISSING:
        raise Unimplemented(f"a volume of type {kind}: {_MISSING[kind]}")
    if kind not in ("direct_block", "image_raw_block", "layer_raw_block"):
        raise InvalidArgument(f"mount option {VOLUME}…: volume_type {kind!r} is not known")
    source, fstype = volume.get("source", ""), volume.get("fs_type", "")
    options = volume.get("options") or []
    if not isinstance(source, str) or not source.startswith("/"):
        raise InvalidArgument(f"a volume of type {kind}: source must be an absolute path")
    if not isinstance(fstype, str) or not fstype:
        raise InvalidArgument(f"a volume of type {kind}: fs_type is missing")
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise InvalidArgument(f"a volume of type {kind}: options must be a list of strings")
    if volume.get("dm_verity"):
        raise Unimplemented(f"a volume of type {kind}: the guest sets no dm-verity up")
    direct = volume.get("direct_volume") or {}
    metadata = direct.get("metadata") or {} if isinstance(direct, dict) else {}
    if not isinstance(metadata, dict):
        raise InvalidArgument(f"a volume of type {kind}: metadata must be an object")
    return Described(kind, source, fstype, tuple(options), metadata)


def disk_of_mount(source: str, fstype: str, options: Sequence[str]) -> DirectVolume | None:
    """The disk that a volume's mount is by its options, None for one without such.

    Args:
        source: what is mounted.
        fstype: the mount's type.
        options: its options.

    Raises:
        InvalidArgument, Unimplemented: see :func:`parse_volume`; or it is an image's layer.
    """
    described = [option for option in options if option.startswith(VOLUME)]
    if described:
        volume = parse_volume(described[-1])
        if volume.kind != "direct_block":
            raise InvalidArgument(f"volume {source}: type {volume.kind} is for root file systems")
        what = f"volume {source}"
        return described_volume(
            source, volume.source, volume.fstype, volume.options, volume.metadata, what
        )
    if IS_FILE not in options:
        return None
    if _IS_LAYER in options:
        raise InvalidArgument(f"volume {source}: layers are named by the root file system's mount")
    rest = tuple(option for option in options if not is_for_kata([option]))
    return DirectVolume(source, source, fstype, rest)


def expand_rootfs(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Say what a root file system is in the words of :mod:`shim.storage.layers`.

    Layers are disks, with an overlay of them; what is written stays in the guest's memory.

    Args:
        mounts: the Create request's ``rootfs``.

    Raises:
        InvalidArgument: options that contradict each other or are malformed.
        Unimplemented: see :func:`parse_volume`.
    """
    if not any(is_for_kata(entry.options) for entry in mounts):
        return tuple(mounts)
    if len(mounts) != 1:
        raise InvalidArgument(f"rootfs: {len(mounts)} mounts, of which one has options for Kata")
    options = mounts[0].options
    volumes = [parse_volume(option) for option in options if option.startswith(VOLUME)]
    layers = [_layer(option) for option in options if option.startswith(_LAYER)]
    if volumes and layers:
        raise InvalidArgument("rootfs: both layers and volumes are described")
    if layers:
        return (*layers, _overlay(_order(layers, options)))
    if not volumes:
        raise InvalidArgument(f"rootfs: {', '.join(options)}: no layer is named")
    if volumes[0].kind == "direct_block":
        if len(volumes) > 1:
            raise InvalidArgument("rootfs: several volumes of type direct_block")
        return (_disk(volumes[0].source, volumes[0].fstype, volumes[0].options),)
    if any(v.kind == "direct_block" or v.kind != volumes[0].kind for v in volumes):
        raise InvalidArgument("rootfs: volumes of several types")
    if volumes[0].kind == "image_raw_block" and len(volumes) > 1:
        raise InvalidArgument("rootfs: several volumes of type image_raw_block")
    disks = [_disk(v.source, v.fstype, (*v.options, "ro")) for v in volumes]
    return (*disks, _overlay(range(len(disks))))


def _layer(option: str) -> Mount:
    """Read PATH,TYPE[,OPTION…], which newer snapshotters put into base64."""
    text = option.removeprefix(_LAYER)
    if "," not in text:
        try:
            text = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            text = ""
    path, _, rest = text.partition(",")
    fstype, *options = rest.split(",")
    if not path.startswith("/") or not fstype:
        raise InvalidArgument(f"rootfs layer {option!r}: want PATH,TYPE[,OPTION…]")
    if any(word.startswith(_ROOT_HASH) for word in options):
        raise Unimplemented(f"rootfs layer {path}: the guest sets no dm-verity up")
    return _disk(path, fstype, (*(w for w in options if not w.startswith(_PREFIX)), "ro"))


def _disk(source: str, fstype: str, options: Sequence[str]) -> Mount:
    # An image file or a device: a loop device is what makes no difference of them.
    return Mount(fstype, source, "", tuple(dict.fromkeys((*options, "loop"))))


def _order(layers: Sequence[Mount], options: Sequence[str]) -> list[int]:
    """Places of the layers from the topmost down, as ``lowerdir=`` has their names."""
    given = [o.removeprefix(_LOWER) for o in options if o.startswith(_LOWER)]
    if not given:
        return list(range(len(layers)))
    places = {posixpath.basename(layer.source): index for index, layer in enumerate(layers)}
    try:
        return [places[posixpath.basename(name)] for name in given[-1].split(":")]
    except KeyError as error:
        name = error.args[0]
        raise InvalidArgument(f"rootfs: lowerdir names {name}, which no layer is") from None


def _overlay(order: Sequence[int]) -> Mount:
    lower = ":".join(f"{{{{ mount {index} }}}}" for index in order)
    return Mount("format/overlay", "overlay", "", (f"{_LOWER}{lower}", OVERLAY_RW))
