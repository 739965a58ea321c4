"""The root of a pod's share: a directory bound onto itself, its mounts seen by the server.

Standard library only, as the VMM may be started before trio is imported.

Source: mount_namespaces(7).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from shim.storage import syscalls
from shim.storage.options import MS_BIND, MS_PRIVATE, MS_REC, MS_SHARED


def make_share_root(
    root: str, record: Callable[..., Any], made: list[tuple[str, str, Any]]
) -> None:
    """Make the directory and its mount; before the file server starts.

    Args:
        root: host path.
        record: called with a kind and fields before a thing is made; returns its note.
        made: takes (kind, path, note) of each thing, in order.

    Raises:
        OSError: the host refuses.
    """
    os.makedirs(os.path.dirname(root), mode=0o711, exist_ok=True)
    if not os.path.isdir(root):
        made.append(("dir", root, record("dir", path=root)))
        os.mkdir(root, 0o755)
    made.append(("mount", root, record("mount", target=root)))
    syscalls.mount(root, root, "", MS_BIND)
    # Private first: its events are to reach the server, not the host.
    syscalls.mount("none", root, "", MS_REC | MS_PRIVATE)
    syscalls.mount("none", root, "", MS_REC | MS_SHARED)
