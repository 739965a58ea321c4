"""Which pod of Kubernetes' a sandbox is, by what CRI servers write into its spec. Pure.

Source: containerd pkg/cri/annotations; CRI-O pkg/annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_KEYS = {
    "uid": ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
    "name": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    "namespace": ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
}


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """A pod's names; each is empty where nobody said."""

    uid: str = ""
    name: str = ""
    namespace: str = ""


def pod_identity(spec: dict[str, Any]) -> PodIdentity:
    """Read a pod's names from the OCI spec of its first container."""
    annotations = spec.get("annotations") or {}

    def find(what: str) -> str:
        return next((str(annotations[key]) for key in _KEYS[what] if annotations.get(key)), "")

    return PodIdentity(find("uid"), find("name"), find("namespace"))
