"""How much swap space a container is to have in the guest, from its annotations. Pure.

Source: Kata's docs/how-to/how-to-setup-swap-devices-in-guest-kernel.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shim.errors import InvalidArgument

PREFIXES = ("io.katacontainers.container.resource.", "io.katapy.container.resource.")
_SWAPPINESS_MAX = 200
_BYTES_MAX = 1 << 60
# In the cgroup of a container that kubelet lets have no swap of the node's.
_UNIFIED = "memory.swap.max"


def container_swap(spec: Mapping[str, Any], default_memory: int) -> int:
    """Return the bytes of swap space that a container's annotations ask for.

    ``swappiness`` over 0 asks for swap space; ``swap_in_bytes`` is memory and swap space
    together, and without it there is as much of the one as of the other.

    Args:
        spec: its OCI spec.
        default_memory: bytes for a container without a memory limit.

    Raises:
        InvalidArgument: a value is no number in range, or ``swap_in_bytes`` has no limit
            that it could be more than.
    """
    annotations = spec.get("annotations", {})
    swappiness = _number(annotations, "swappiness", _SWAPPINESS_MAX)
    both = _number(annotations, "swap_in_bytes", _BYTES_MAX)
    if not swappiness:
        return 0
    limit = _memory_limit(spec)
    if both is None:
        return limit or default_memory
    if not limit or both < limit:
        text = f"a memory limit below it is needed, and the container has {limit or 'none'}"
        raise InvalidArgument(f"annotation {PREFIXES[0]}swap_in_bytes = {both}: {text}")
    return both - limit


def allow_swap(spec: dict[str, Any], swap: int) -> None:
    """Let a container use swap space in the guest, whatever the node allows of its own.

    Args:
        spec: its OCI spec, which is changed.
        swap: bytes.
    """
    resources = spec.setdefault("linux", {}).setdefault("resources", {})
    resources.get("unified", {}).pop(_UNIFIED, None)
    limit = _memory_limit(spec)
    memory = resources.setdefault("memory", {})
    memory.pop("swap", None)
    if limit:
        memory["swap"] = limit + swap


def _memory_limit(spec: Mapping[str, Any]) -> int:
    """The memory limit in bytes, 0 for none."""
    memory = spec.get("linux", {}).get("resources", {}).get("memory", {})
    limit = int(memory.get("limit") or 0)
    return limit if 0 < limit < _BYTES_MAX else 0


def _number(annotations: Mapping[str, str], key: str, most: int) -> int | None:
    for prefix in PREFIXES:
        text = annotations.get(prefix + key)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and int(text) <= most):
            raise InvalidArgument(
                f"annotation {prefix}{key} = {text!r}: accepted is a number from 0 to {most}"
            )
        return int(text)
    return None
