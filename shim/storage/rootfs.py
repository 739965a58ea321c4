"""Decides how a container's root file system reaches the guest.

A block device or image file goes to the VM as a disk, which the guest mounts: no file
server is in the way. Everything else is mounted on the host and shared, or packed into a
disk where the VM shares nothing.

Source: containerd snapshotters' mounts (contract §5.2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from shim.errors import InvalidArgument, Unimplemented
from shim.storage.kata_volume import OVERLAY_RW, expand_rootfs
from shim.storage.layers import MKDIR, is_stack, plain_type, resolve
from shim.storage.options import Mount, parse_options

GUEST_FILESYSTEMS = frozenset(("ext4", "xfs", "erofs"))
"""What both guest kernels mount."""

MAX_LAYERS = 12
"""Disks of one root file system; more are stacked on the host, as a VM's places are few."""

_VERITY = "X-containerd.dmverity="
_CHANGES = frozenset(("upperdir", "workdir"))
_HOST_WORDS = frozenset(("loop", "direct-io", "direct_io", "rw", "defaults"))


@dataclass(frozen=True, slots=True)
class SharedRootfs:
    """Make these mounts on the host, or take a ready directory, and share it.

    Attributes:
        mounts: to be made in order, each at its target below the root.
        directory: the ready root, if there are no mounts.
    """

    mounts: tuple[Mount, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class BlockRootfs:
    """Attach this disk to the VM and mount it there.

    Attributes:
        path: block device or image file.
        fstype: its file system.
        read_only: attach and mount it read-only.
        is_image: it is a file, not a device.
        direct_io: bypass the host's page cache.
        options: mount options for the guest.
    """

    path: str
    fstype: str
    read_only: bool
    is_image: bool
    direct_io: bool
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayeredRootfs:
    """Attach these disks to the VM, mount each there, and an overlay of them.

    Attributes:
        disks: in the order of their places in the overlay's templates.
        overlay: what :func:`shim.storage.layers.resolve` takes with the disks' mount points.
        in_memory: none of the disks is for changes, so they stay in the guest's memory.
    """

    disks: tuple[BlockRootfs, ...]
    overlay: Mount
    in_memory: bool = False


@dataclass(frozen=True, slots=True)
class PackedRootfs:
    """Pack what these mounts, or a ready directory, show into a read-only disk.

    Attributes:
        mounts, directory: as those of :class:`SharedRootfs`.
    """

    mounts: tuple[Mount, ...]
    directory: str


def is_block_device(path: str) -> bool:
    """Whether ``path`` is a block device."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def plan_rootfs(
    mounts: Sequence[Mount],
    bundle_root: str,
    *,
    can_share: bool,
    can_attach: bool,
    guest_filesystems: Collection[str] = GUEST_FILESYSTEMS,
    is_block: Callable[[str], bool] = is_block_device,
) -> SharedRootfs | BlockRootfs | LayeredRootfs | PackedRootfs:
    """Choose the way of a root file system into the guest.

    Args:
        mounts: the Create request's ``rootfs``.
        bundle_root: absolute path of config.json's ``root.path``, which counts when
            there are no mounts.
        can_share: the VM can share a host directory.
        can_attach: the VM can take another disk.
        guest_filesystems: what the guest can mount.
        is_block: tells block devices from the rest.

    Raises:
        InvalidArgument: options that can't be honoured or a mount outside the root.
        Unimplemented: the VM has no way for it, or it is to be verified.
    """
    mounts = expand_rootfs(mounts)
    for entry in mounts:
        if any(option.startswith(_VERITY) for option in entry.options):
            raise Unimplemented(
                f"layer {entry.source} is to be checked by dm-verity, which katapy does not do: "
                'see dmverity_mode = "off" of containerd\'s erofs snapshotter'
            )
    if is_stack(mounts):
        return _plan_stack(
            tuple(mounts),
            bundle_root,
            can_share=can_share,
            can_attach=can_attach,
            guest_filesystems=guest_filesystems,
            is_block=is_block,
        )
    for entry in mounts:
        parse_options(entry.options)
        if ".." in entry.target.split("/"):
            raise InvalidArgument(f"rootfs mount target {entry.target!r} leaves the root")
    disk = None
    if len(mounts) == 1 and can_attach:
        disk = _as_disk(mounts[0], guest_filesystems, is_block)
    if disk is not None:
        return disk
    if can_share:
        return SharedRootfs(tuple(mounts), bundle_root)
    if can_attach:
        return PackedRootfs(tuple(mounts), bundle_root)
    kinds = ", ".join(entry.type for entry in mounts) or "a directory"
    raise Unimplemented(
        f"rootfs ({kinds}): this VM shares no directories and takes no further disks"
    )


def _plan_stack(
    mounts: tuple[Mount, ...],
    bundle_root: str,
    *,
    can_share: bool,
    can_attach: bool,
    guest_filesystems: Collection[str],
    is_block: Callable[[str], bool],
) -> SharedRootfs | LayeredRootfs:
    # What can't be understood is said now, not when half of it is mounted.
    _, directories = resolve(mounts[-1], ["/"] * (len(mounts) - 1))
    for entry in mounts:
        plain_type(entry)
    *layers, top = mounts
    found = [_as_disk(entry, guest_filesystems, is_block) for entry in layers]
    disks = tuple(entry for entry in found if entry is not None)
    attachable = (
        can_attach
        and plain_type(top) == "overlay"
        and len(disks) == len(layers) <= MAX_LAYERS
        and all(directory.owner == (0, 0) for directory in directories)
        and not any(option.startswith(("uidmap=", "gidmap=")) for option in top.options)
    )
    # Unless the snapshotter makes a disk for changes, they go to a directory of the host.
    on_host = _directories_of_host(top)
    if attachable and not on_host:
        return LayeredRootfs(disks, top)
    in_guest = OVERLAY_RW in top.options
    if can_share and not in_guest:
        return SharedRootfs(mounts, bundle_root)
    if attachable and on_host <= _CHANGES:
        kept = tuple(o for o in top.options if o.partition("=")[0] not in _CHANGES)
        return LayeredRootfs(disks, replace(top, options=kept), in_memory=True)
    why = "its changes are to stay in the guest" if in_guest else "this VM shares no directories"
    raise Unimplemented(
        f"rootfs of {len(layers)} layers: {why}, and it takes no more than "
        f"{MAX_LAYERS if can_attach else 0} disks for it, each an image or device of "
        f"{', '.join(sorted(guest_filesystems))}"
    )


def _directories_of_host(overlay: Mount) -> frozenset[str]:
    """The options of an overlay that name directories outside of the mounts before it."""
    found = (option.partition("=") for option in overlay.options)
    return frozenset(
        key
        for key, _, value in found
        if key in ("lowerdir", *_CHANGES, MKDIR.rstrip("="))
        and not all(
            place.startswith("{{") for place in (value.split(":") if key == "lowerdir" else [value])
        )
    )


def _as_disk(
    entry: Mount, guest_filesystems: Collection[str], is_block: Callable[[str], bool]
) -> BlockRootfs | None:
    options = parse_options(entry.options)
    if entry.type not in guest_filesystems or entry.target.strip("/"):
        return None
    if options.uid_map or options.gid_map:
        return None
    if any(option.startswith("device=") for option in options.data):
        return None  # an image of several files
    # A kernel from 6.12 on mounts an erofs image without a loop device.
    image = options.loop or (entry.type == "erofs" and os.path.isfile(entry.source))
    if not (image or is_block(entry.source)):
        return None
    return BlockRootfs(
        path=entry.source,
        fstype=entry.type,
        # erofs has no other way, and a snapshot's layer must not be locked for writing.
        read_only=options.read_only or entry.type == "erofs",
        is_image=image,
        direct_io=options.direct_io,
        options=tuple(o for o in entry.options if o and o not in _HOST_WORDS),
    )
