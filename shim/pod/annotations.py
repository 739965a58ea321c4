"""Pod annotations that change the configuration of one pod.

``io.katacontainers.config.{hypervisor,runtime,agent}.KEY``, and the same names after
``io.katapy.config.``, where ``katapy`` is one more part. Who may create a pod is not who
configures the host, so those of the hypervisor must be enabled by the configuration, and
programs of the host moreover lie where it says. As in Kata an annotation that is not
enabled keeps the pod from starting, and values are what its Go runtime reads.

Source: Kata's docs/how-to/how-to-set-sandbox-config-kata.md; pkg/oci/utils.go of its Go
runtime (addAnnotations).
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, replace
from typing import Any, TypeVar

from shim.config.hypervisors import AnyHypervisor, SharingHypervisor
from shim.config.kata_keys import ALIASES, NOT_YET
from shim.config.load import check
from shim.config.model import Agent, Config, Katapy, Runtime
from shim.config.rules import Refused, rule_of
from shim.errors import InvalidArgument

Section = TypeVar("Section", bound=AnyHypervisor | Runtime | Agent | Katapy)

PREFIXES = ("io.katacontainers.config.", "io.katapy.config.")

# What a pod may set without being allowed to, as with Kata.
_RUNTIME = frozenset(
    (
        "create_container_timeout",
        "disable_guest_seccomp",
        "disable_new_netns",
        "internetworking_model",
        "sandbox_cgroup_only",
        "shared_mounts",
        "vfio_mode",
    )
)
_AGENT = frozenset(("container_pipe_size", "kernel_modules"))
_KATAPY = frozenset(("socket_directories",))

# What protects the host from pods is no pod's to change, whatever the patterns match.
_HOST_ONLY = frozenset(
    (
        "disable_seccomp",
        "enable_annotations",
        "enable_debug",
        "guest_memory_dump_path",
        "guest_swap_path",
        "rootless",
        "seccompsandbox",
        "valid_hypervisor_paths",
        "valid_virtio_fs_daemon_paths",
    )
)

_OTHER_NAMES = {"default_max_vcpus": "default_maxvcpus"}
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def annotated(
    config: Config, annotations: Mapping[str, str], warn: Callable[[str], None]
) -> Config:
    """Return the configuration of a pod.

    Args:
        config: the one of the files.
        annotations: those of the pod's first container.
        warn: told of each annotation of Kata's that has no effect here.

    Raises:
        InvalidArgument: an annotation is not enabled, not known, or its value is wrong.
    """
    for name, value in annotations.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            continue
        part, _, key = name.removeprefix(prefix).partition(".")
        match part:
            case "hypervisor":
                config = _set_hypervisor(config, name, key, value, warn)
            case "runtime" if key in _RUNTIME and _has(config.runtime, key):
                config = replace(config, runtime=_set(config.runtime, name, key, value))
            case "agent" if key in _AGENT:
                config = replace(config, agent=_set(config.agent, name, key, value))
            case "katapy" if key in _KATAPY:
                config = replace(config, katapy=_set(config.katapy, name, key, value))
            case _:
                if key not in NOT_YET.get({"agent": "agent.kata"}.get(part, part), {}):
                    raise InvalidArgument(f"annotation {name} is not known")
                warn(f"annotation {name} has no effect")
                continue
        section = config.hypervisor.section if part == "hypervisor" else part
        config = replace(config, origins={**config.origins, f"{section}.{key}": name})
    check(config)
    return config


def _set_hypervisor(
    config: Config, name: str, key: str, value: str, warn: Callable[[str], None]
) -> Config:
    vm = config.hypervisor
    # The whole name: a pattern "path" is not meant to allow jailer_path too.
    if not any(re.fullmatch(pattern, key) for pattern in vm.enable_annotations):
        raise InvalidArgument(
            f"annotation {name} is not enabled: [{vm.section}] enable_annotations has "
            f"{', '.join(vm.enable_annotations) or 'none'}"
        )
    key = _OTHER_NAMES.get(key, key)
    key = ALIASES.get(f"{vm.section}.{key}", key)
    if not _has(vm, key) or key in _HOST_ONLY:
        if key in _HOST_ONLY or key not in NOT_YET[vm.section]:
            # Such as kernel_hash: who sets it relies on it.
            raise InvalidArgument(f"annotation {name} is not known")
        warn(f"annotation {name} has no effect")
        return config
    if key == "path":
        _check_path(name, value, vm.valid_hypervisor_paths, "valid_hypervisor_paths")
    elif key == "virtio_fs_daemon" and isinstance(vm, SharingHypervisor):
        _check_path(name, value, vm.valid_virtio_fs_daemon_paths, "valid_virtio_fs_daemon_paths")
    changed = _set(vm, name, key, value)
    if key in ("default_vcpus", "default_maxvcpus"):
        cpus = os.cpu_count() or 1
        if getattr(changed, key) > cpus:
            raise InvalidArgument(f"annotation {name} = {value!r}: this host has {cpus} CPUs")
    return replace(config, hypervisor=changed)


def _check_path(name: str, value: str, allowed: tuple[str, ...], key: str) -> None:
    if not any(value in glob.glob(pattern) for pattern in allowed):
        raise InvalidArgument(f"annotation {name} = {value!r}: {key} does not allow it")


def _has(section: AnyHypervisor | Runtime, key: str) -> bool:
    return any(field.name == key for field in fields(section))


def _set(section: Section, name: str, key: str, value: str) -> Section:
    """Return a section with one key read from an annotation."""
    (field,) = (f for f in fields(section) if f.name == key)
    rule = rule_of(field.metadata)
    before = getattr(section, key)
    try:
        given = rule.convert(_parse(field, value))
    except (Refused, KeyError, ValueError):
        raise InvalidArgument(
            f"annotation {name} = {value!r}: accepted is {rule.accepts}"
        ) from None
    if key == "kernel_params":
        given = f"{before} {given}".strip()
    elif key == "virtio_fs_extra_args":
        given = (*before, *given)
    return replace(section, **{key: given})


def _parse(field: Field[Any], value: str) -> object:
    """Read an annotation's text as a configuration file's value of the same meaning."""
    if field.name == "kernel_modules":
        return [line.strip() for line in value.split(";")]
    match field.default:
        case bool():
            return _BOOLEANS[value]
        case int():
            return int(value)
        case float():
            return float(value)
        case tuple():
            return json.loads(value)
        case _:
            return value
