"""What a container is to its pod, as annotations of its spec tell.

Source: containerd's CRI plugin, CRI-O and dockershim each have their own key; Kata reads
the same three.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from shim.errors import InvalidArgument

_KEYS = (
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.docker.type",
)
_NAME_KEYS = ("io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName")


class Role(enum.Enum):
    """A container's place in its pod."""

    SINGLE = "single"
    """No pod was mentioned: the container is alone, as with ``ctr run``."""
    SANDBOX = "sandbox"
    """The pause container, which stands for the pod."""
    MEMBER = "container"
    """One of a pod's containers."""


_VALUES = {"sandbox": Role.SANDBOX, "podsandbox": Role.SANDBOX, "container": Role.MEMBER}


def container_role(spec: Mapping[str, Any]) -> Role:
    """Find a container's role.

    Raises:
        InvalidArgument: an annotation has a value that nobody gives it.
    """
    annotations = spec.get("annotations", {})
    for key in _KEYS:
        value = annotations.get(key)
        if value:
            if value not in _VALUES:
                known = ", ".join(sorted(_VALUES))
                raise InvalidArgument(f"annotation {key} is {value!r}, expected one of {known}")
            return _VALUES[value]
    return Role.SINGLE


def container_name(spec: Mapping[str, Any]) -> str:
    """A container's name in its pod, "" where nobody gave it one."""
    annotations = spec.get("annotations", {})
    return next((annotations[key] for key in _NAME_KEYS if annotations.get(key)), "")
