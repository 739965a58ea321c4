"""Between the sandbox API's messages and a declared pod; imported when a client uses them.

Source: containerd api/runtime/sandbox/v1; k8s.io/cri-api runtime/v1; how containerd's CRI
plugin writes a pause container's spec (annotations, cgroup path).
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

from google.protobuf.message import DecodeError

from protos.containerd import sandbox_pb2
from protos.cri import sandbox_pb2 as cri
from shim.errors import InvalidArgument
from shim.oci.declared_pod import DeclaredPod

CONFIG_TYPE = "runtime.v1.PodSandboxConfig"
_CRI = "io.kubernetes.cri."


def declared_pod(request: sandbox_pb2.CreateSandboxRequest) -> DeclaredPod:
    """Read CreateSandbox.

    Options of another type than CRI's are not looked at: other clients have their own.

    Raises:
        InvalidArgument: the options don't parse.
    """
    config = cri.PodSandboxConfig()
    if request.options.type_url.rsplit("/", 1)[-1] == CONFIG_TYPE:
        try:
            config.ParseFromString(request.options.value)
        except DecodeError as err:
            raise InvalidArgument(f"pod {request.sandbox_id}: unreadable config: {err}") from None
    return DeclaredPod(_spec(request, config), _dns(config.dns_config))


def _spec(
    request: sandbox_pb2.CreateSandboxRequest, config: cri.PodSandboxConfig
) -> dict[str, Any]:
    options = config.linux.security_context.namespace_options
    namespaces: list[dict[str, str]] = [{"type": "mount"}]
    if options.pid != cri.NODE:
        namespaces.append({"type": "pid"})
    if options.ipc != cri.NODE:
        namespaces.append({"type": "ipc"})
    if request.netns_path:
        namespaces += [{"type": "uts"}, {"type": "network", "path": request.netns_path}]
    hostname = config.hostname
    if not hostname and not request.netns_path:
        hostname = os.uname().nodename
    return {
        "hostname": hostname,
        "root": {"path": "rootfs", "readonly": True},
        "annotations": {
            **config.annotations,
            **request.annotations,
            **_annotations(request.sandbox_id, config),
        },
        "linux": {
            "namespaces": namespaces,
            "sysctl": dict(config.linux.sysctls),
            "cgroupsPath": _cgroups_path(config.linux.cgroup_parent, request.sandbox_id),
        },
    }


def _annotations(sandbox_id: str, config: cri.PodSandboxConfig) -> dict[str, str]:
    found = {
        "container-type": "sandbox",
        "sandbox-id": sandbox_id,
        "sandbox-namespace": config.metadata.namespace,
        "sandbox-name": config.metadata.name,
        "sandbox-uid": config.metadata.uid,
        "sandbox-log-directory": config.log_directory,
    }
    if config.linux.HasField("resources"):
        resources = config.linux.resources
        found |= {
            "sandbox-cpu-period": str(resources.cpu_period),
            "sandbox-cpu-quota": str(resources.cpu_quota),
            "sandbox-cpu-shares": str(resources.cpu_shares),
            "sandbox-memory": str(resources.memory_limit_in_bytes),
        }
    return {f"{_CRI}{key}": value for key, value in found.items() if value}


def _cgroups_path(parent: str, sandbox_id: str) -> str:
    if not parent:
        return ""
    if parent.endswith(".slice"):
        return f"{posixpath.basename(parent)}:cri-containerd:{sandbox_id}"
    return f"{parent.rstrip('/')}/{sandbox_id}"


def _dns(config: cri.DNSConfig) -> tuple[str, ...]:
    lines = []
    if config.searches:
        lines.append(f"search {' '.join(config.searches)}")
    lines += [f"nameserver {server}" for server in config.servers]
    if config.options:
        lines.append(f"options {' '.join(config.options)}")
    return tuple(lines)
