"""Overlay mounts with more layers than fit into mount(2)'s page of data.

containerd's layers lie side by side, so their long common prefix becomes the working
directory of a thread of its own and the layers are named relative to it. fsconfig(2)
with ``lowerdir+`` would not need that, but exists from Linux 6.8 on only; Debian 12 has 6.1.

Source: mount(2) "data"; containerd core/mount (compactLowerdirOption).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from shim.errors import ResourceExhausted

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_LOWER = "lowerdir="
_UNESCAPE = re.compile(r"\\(.)")


def compact(data: Sequence[str]) -> tuple[str | None, str]:
    """Join overlay options, shortened if they are too long.

    Args:
        data: file system options, a ``lowerdir=`` among them.

    Returns:
        The directory the mount has to be made from, or None for any, and the data.

    Raises:
        ResourceExhausted: too long even so.
    """
    joined = ",".join(data)
    if _fits(joined):
        return None, joined
    lower = next((option for option in data if option.startswith(_LOWER)), _LOWER)
    layers = split_layers(lower.removeprefix(_LOWER))
    base = os.path.commonpath(layers) if all(layer.startswith("/") for layer in layers) else ""
    if base in ("", "/"):
        raise ResourceExhausted(
            f"overlay: {len(layers)} layers take {len(joined)} bytes of mount options, "
            f"the kernel takes {PAGE_SIZE}, and they have no common directory"
        )
    relative = ":".join(os.path.relpath(layer, base) for layer in layers)
    joined = ",".join(_LOWER + relative if option is lower else option for option in data)
    if not _fits(joined):
        raise ResourceExhausted(
            f"overlay: the names of {len(layers)} layers below {base} take {len(joined)} bytes "
            f"of mount options, the kernel takes {PAGE_SIZE}"
        )
    return _UNESCAPE.sub(r"\1", base), joined


def split_layers(lower: str) -> list[str]:
    """Split a ``lowerdir`` value at its colons, except escaped ones."""
    layers, current, escaped = [], "", False
    for character in lower:
        if character == ":" and not escaped:
            layers.append(current)
            current = ""
            continue
        escaped = character == "\\" and not escaped
        current += character
    return [*layers, current]


def _fits(data: str) -> bool:
    # The kernel ends what it copied with a NUL of its own.
    return len(os.fsencode(data)) < PAGE_SIZE
