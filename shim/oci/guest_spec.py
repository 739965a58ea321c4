"""Turns the spec of a container on the host into one for a container in the VM.

The VM is the boundary: what named the host's namespaces, devices, cgroups and
security modules goes; what describes the process and its limits stays. Containers of
a pod share the VM's one network namespace.

Source: OCI runtime-spec; reference kata-features.md O1 to O25; crun on cgroup v2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shim.oci.devices import device_rules, guest_devices, is_privileged
from shim.oci.mounts import GUEST_SHM, guest_mounts
from shim.oci.resources import GuestLimits, guest_resources

CGROUP_PARENT = "/katapy"
"""Cgroup in the guest under which each container has its own."""
VM_NETWORK = "/proc/1/ns/net"
"""The VM's network namespace, as a process in the guest sees it."""
EVERY_DEVICE = "io.katapy.every-device"
"""Annotation that has our agent give a container all of the guest's device nodes."""
OCI_VERSION = "1.0.2"
NOFILE_MAX = 1 << 20
"""The guest kernel's fs.nr_open; a higher hard limit on descriptors is EPERM."""

_OWN_NAMESPACES = ("pid", "mount", "ipc", "uts", "cgroup", "user")
_CGROUP_NAME = re.compile(r"[^A-Za-z0-9_.-]")
_KEPT_LINUX = (
    "uidMappings",
    "gidMappings",
    "sysctl",
    "rootfsPropagation",
    "maskedPaths",
    "readonlyPaths",
    "personality",
)
_DROPPED_PROCESS = ("apparmorProfile", "selinuxLabel", "commandLine", "execCPUAffinity")


def guest_spec(
    spec: Mapping[str, Any],
    *,
    container_id: str,
    rootfs_path: str,
    mount_sources: Mapping[int, str | None],
    joined_namespaces: Mapping[str, str] | None = None,
    devices: Mapping[str, tuple[int, int]] | None = None,
    annotations: Mapping[str, str] | None = None,
    terminal: bool | None = None,
    seccomp: bool = True,
    limits: GuestLimits | None = None,
    cpus: str = "",
    network_path: str | None = VM_NETWORK,
    shm_path: str = GUEST_SHM,
) -> dict[str, Any]:
    """Build the spec that runs in the guest; ``spec`` is left alone.

    Args:
        spec: the bundle's spec, from :func:`shim.oci.spec.load_spec`.
        container_id: names the cgroup.
        rootfs_path: the root filesystem's path in the guest.
        mount_sources: guest path of each :func:`shim.oci.mounts.host_mounts` entry,
            by its index; None for one that became a device.
        joined_namespaces: type (``ipc``, ``uts``, ``pid``) to guest path, used for
            the ones that the spec joins by a path on the host. A type it joins
            that is not here becomes the container's own.
        devices: device path in the container to major and minor in the guest, for
            devices that were attached to the VM.
        annotations: added to the spec's.
        terminal: what the request says, which wins over the spec; None keeps it.
        seccomp: keep the seccomp profile.
        limits: the limits this guest has.
        cpus: the guest's CPUs that stand for the host's CPU set, empty for any.
        network_path: network namespace to join. It has to be in the spec for
            crun to accept ``net.`` sysctls; None leaves it out, as Kata's agent wants.
        shm_path: the pod's /dev/shm in the guest.

    Raises:
        InvalidArgument: a mount or device that can't be had in the guest.
    """
    linux = spec.get("linux", {})
    namespaces = _namespaces(linux, joined_namespaces or {}, network_path)
    kept_devices = guest_devices(linux.get("devices", ()), devices or {})
    resources = linux.get("resources", {})

    guest_linux: dict[str, Any] = {k: linux[k] for k in _KEPT_LINUX if k in linux}
    guest_linux["namespaces"] = namespaces
    guest_linux["cgroupsPath"] = guest_cgroup(linux.get("cgroupsPath", ""), container_id)
    guest_linux["devices"] = kept_devices
    guest_linux["resources"] = guest_resources(resources, limits=limits, cpus=cpus)
    guest_linux["resources"]["devices"] = device_rules(
        resources.get("devices", ()), kept_devices, host_devices=linux.get("devices", ())
    )
    own_annotations = {k: v for k, v in spec.get("annotations", {}).items() if k != EVERY_DEVICE}
    if is_privileged(linux):
        own_annotations[EVERY_DEVICE] = "true"
    if seccomp and "seccomp" in linux:
        # A listener is a socket of the host.
        guest_linux["seccomp"] = {
            k: v for k, v in linux["seccomp"].items() if not k.startswith("listener")
        }

    result: dict[str, Any] = {
        # Debian 12's crun refuses any newer one, and acts on members, not on the version.
        "ociVersion": OCI_VERSION,
        "root": {**spec.get("root", {}), "path": rootfs_path},
        "mounts": guest_mounts(spec, mount_sources, shm=shm_path),
        "linux": guest_linux,
        "annotations": {**own_annotations, **(annotations or {})},
    }
    # The others are the host's.
    if "startContainer" in spec.get("hooks", {}):
        result["hooks"] = {"startContainer": spec["hooks"]["startContainer"]}
    if "process" in spec:
        result["process"] = guest_process(spec["process"], terminal=terminal)
    if any(namespace["type"] == "uts" for namespace in namespaces):
        result |= {k: spec[k] for k in ("hostname", "domainname") if k in spec}
    return result


def guest_process(process: Mapping[str, Any], *, terminal: bool | None = None) -> dict[str, Any]:
    """Build the process of a container or exec for the guest.

    Args:
        process: an OCI process, from the spec or an exec request.
        terminal: what the request says; None keeps the process's own.
    """
    result = {k: v for k, v in process.items() if k not in _DROPPED_PROCESS}
    if terminal is not None:
        result["terminal"] = terminal
    if not result.get("terminal"):
        result.pop("consoleSize", None)
    if "user" in result:
        result["user"] = {k: v for k, v in result["user"].items() if k != "username"}
    if "rlimits" in result:
        result["rlimits"] = [_clamped(limit) for limit in result["rlimits"]]
    if "oomScoreAdj" in result:
        # Nothing in the guest may be spared before its agent.
        result["oomScoreAdj"] = max(0, result["oomScoreAdj"])
    return result


def guest_cgroup(path: str, container_id: str) -> str:
    """Translate a host cgroup path, plain or ``slice:prefix:name``, to the guest's.

    >>> guest_cgroup("kubepods-pod1.slice:cri-containerd:abc", "abc")
    '/katapy/abc'
    """
    name = path.rpartition(":")[2] if path.count(":") == 2 else path.rstrip("/").rpartition("/")[2]
    name = _CGROUP_NAME.sub("_", name)
    if name in ("", ".", ".."):
        name = container_id
    return f"{CGROUP_PARENT}/{name}"


def _namespaces(
    linux: Mapping[str, Any], joined: Mapping[str, str], network_path: str | None
) -> list[dict[str, str]]:
    result = []
    for namespace in linux.get("namespaces", ()):
        kind = namespace.get("type", "")
        if kind not in _OWN_NAMESPACES:
            continue  # network below; time offsets are relative to the host's boot
        if namespace.get("path") and kind in joined:
            result.append({"type": kind, "path": joined[kind]})
        else:
            result.append({"type": kind})
    present = {namespace["type"] for namespace in result}
    if "mount" not in present:
        result.append({"type": "mount"})
    if "cgroup" not in present and not is_privileged(linux):
        # Specs of hosts with cgroup v1 have none: there a container sees its own cgroup
        # without, and only its own.
        result.append({"type": "cgroup"})
    if network_path is not None:
        result.append({"type": "network", "path": network_path})
    return result


def _clamped(limit: Mapping[str, Any]) -> dict[str, Any]:
    if limit.get("type") != "RLIMIT_NOFILE":
        return dict(limit)
    return {**limit, **{k: min(limit[k], NOFILE_MAX) for k in ("hard", "soft") if k in limit}}
