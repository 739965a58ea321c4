"""``katapy env``: versions and the configuration in effect."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shim.cleanup.ledger import state_dir
from shim.cli import host, vm
from shim.cli.options import add_config_argument, configuration
from shim.config.hypervisors import Qemu, SharingHypervisor
from shim.config.model import Config
from shim.version import VERSION
from vmm.errors import VmmError

_PACKAGES = ("trio", "protobuf", "pyroute2", "grpcio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the environment; 0, or a ConfigError."""
    config = configuration(arguments.config)
    if arguments.json:
        print(json.dumps({**environment(config), "config": _sections(config)}, indent=2))
    else:
        print(as_text(config))
    return 0


def environment(config: Config) -> dict[str, Any]:
    """Return versions and host facts, "" for what is not there."""
    system = os.uname()
    return {
        "katapy": VERSION,
        "python": sys.version.split()[0],
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "host": {
            "os": _os_name(),
            "kernel": system.release,
            "machine": system.machine,
            "cpus": os.cpu_count() or 1,
            "cgroups": host.cgroup_mode(),
        },
        "accelerator": _accelerator(),
        **_programs(config),
        "containerd": host.containerd_version(),
        "state_dir": state_dir(),
        "config_sources": list(config.sources),
        "config_warnings": list(config.warnings),
    }


def as_text(config: Config) -> str:
    """Return the environment as text, the configuration as TOML with where each value is from."""
    lines = []
    for name, value in environment(config).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {inner or '-'}" for key, inner in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        lines.append(f"# {name}: {value or '-'}")
    for section, values in _sections(config).items():
        lines += ["", f"[{section}]"]
        for key, entry in values.items():
            origin = f"  # {entry['origin']}" if entry["origin"] else ""
            lines.append(f"{key} = {_toml(entry['value'])}{origin}")
    return "\n".join(lines)


def _sections(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Return section → key → value as TOML would hold it, and the file that set it."""
    return {
        section: {
            f.name: {
                "value": _plain(getattr(values, f.name)),
                "origin": config.origins.get(f"{section}.{f.name}", ""),
            }
            for f in fields(values)
        }
        for section, values in config.sections().items()
    }


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(entry)}' for key, entry in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def _plain(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value) if isinstance(value, Path) else value


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _accelerator() -> str:
    from vmm.qemu import accel

    found = accel.detect()
    return f"{found.name} ({found.why_not_kvm})" if found.why_not_kvm else found.name


def _programs(config: Config) -> dict[str, Any]:
    """The hypervisor, and virtiofsd if it can use one."""
    found: dict[str, Any] = {}
    hypervisor = config.hypervisor
    if isinstance(hypervisor, Qemu):
        found["qemu"] = _qemu(hypervisor, config.katapy.guest_arch)
    else:
        found[hypervisor.name] = str(vm.find_program(hypervisor) or "")
    if isinstance(hypervisor, SharingHypervisor):
        found["virtiofsd"] = str(vm.find_virtiofsd(hypervisor.virtio_fs_daemon) or "")
    return found


def _qemu(qemu: Qemu, arch: str) -> dict[str, str]:
    from vmm.arch import architecture
    from vmm.qemu import probe

    try:
        binary = probe.find_binary(architecture(arch), qemu.path or "")
        features = probe.probe(binary)
    except VmmError:
        return {"path": "", "version": ""}
    return {"path": str(binary), "version": features.version_text}
