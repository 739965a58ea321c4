"""Bind mounts by way of a detached clone, which is complete before anyone sees it.

A plain bind joins the peer group of its source: an unmount of the copy with what lies
below it would then reach the source on the host. The clone is made a slave first, so
that events come in and none go out, or private, so that none come in either; and
read-only holds for everything below, not for the topmost mount alone, unless so wanted.

Source: open_tree(2), mount_setattr(2), move_mount(2); mount_namespaces(7).
"""

from __future__ import annotations

import os

from shim.storage import syscalls
from shim.storage.options import MS_PRIVATE, MS_SLAVE


def attach_clone(
    source: str,
    target: str,
    *,
    recursive: bool,
    read_only: bool = False,
    writable_below: bool = False,
    follow: bool = True,
    devices: bool = True,
    user_namespace: int | None = None,
) -> None:
    """Show ``source`` at ``target``, which exists and is of the same kind.

    Args:
        source: directory or file.
        target: absolute path.
        recursive: with the mounts below it.
        read_only: for all of them.
        writable_below: read-only is the topmost one alone.
        follow: mounts that appear below the source later appear here too.
        devices: False lets nobody open a device node there.
        user_namespace: descriptor of the namespace to map the owners by, of the topmost
            one alone: what is mounted below may have its own or know none.

    Raises:
        OSError: as the system calls.
    """
    attributes = syscalls.MOUNT_ATTR_RDONLY if read_only and not writable_below else 0
    if not devices:
        attributes |= syscalls.MOUNT_ATTR_NODEV
    top = syscalls.MOUNT_ATTR_RDONLY if read_only else 0
    if user_namespace is not None:
        top |= syscalls.MOUNT_ATTR_IDMAP
    tree = syscalls.open_tree(source, recursive=recursive)
    try:
        syscalls.mount_setattr(
            tree,
            attributes=attributes,
            propagation=MS_SLAVE if follow else MS_PRIVATE,
            recursive=recursive,
            where=source,
        )
        if top & ~attributes:
            syscalls.mount_setattr(
                tree, attributes=top, user_namespace=user_namespace or 0, where=source
            )
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)
