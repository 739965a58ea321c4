"""Make the tables in ``schemas/`` from the API descriptions that the two projects publish.

Usage: ``python -m tests.standins.make_schemas DIRECTORY``, where DIRECTORY holds
``firecracker-v1.16.1.yaml`` (``src/firecracker/swagger/firecracker.yaml`` of that tag) and
``cloud-hypervisor-v53.0.yaml`` (``vmm/src/api/openapi/cloud-hypervisor.yaml``) and so on.
Needs PyYAML. Only names, types, ranges and which fields must be there are taken over.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.standins.schema import SCHEMAS, Types

# What the servers do and the descriptions leave out or get wrong, with its source: the
# structs that the bodies are parsed into (Firecracker src/vmm/src/vmm_config/*.rs).
_FIRECRACKER_FIXES: Mapping[str, Mapping[str, str]] = {
    "MmdsContentsObject": {},
    "BalloonUpdate": {"amount_mib": "integer 0..4294967295!"},
    "MemoryHotplugConfig": {"total_size_mib": "integer 0..4294967295!"},
    "MemoryHotplugSizeUpdate": {"requested_size_mib": "integer 0..4294967295!"},
}
# In Cloud Hypervisor vmm/src/vm_config.rs these have defaults or are optional.
_CLOUD_HYPERVISOR_FIXES: Mapping[str, Mapping[str, str]] = {
    "DeviceConfig": {"fd": "any"},
    "FsConfig": {"num_queues": "integer 1..", "queue_size": "integer 1.."},
    "MemoryConfig": {"hotplug_method": "Acpi|VirtioMem"},
    "NetConfig": {"fds": "any", "vhost_mode": "Client|Server"},
    "RestoreConfig": {"net_fds": "[@RestoredNetConfig]"},
    "RestoredNetConfig": {"id": "string!", "num_fds": "integer 0..!"},
    "RngConfig": {"src": "string"},
    "VmRemoveDevice": {"id": "string!"},
    "VmResizeDisk": {"id": "string!", "desired_size": "integer 0..!"},
    "VmResizeZone": {"id": "string!", "desired_ram": "integer 0..!"},
    "VmSnapshotConfig": {"destination_url": "string!"},
}

_NEW_TYPES = ("MmdsContentsObject", "RestoredNetConfig")

# Firecracker 1.17 (its main branch in August 2026), which has no description yet.
_FIRECRACKER_1_17: Mapping[str, Mapping[str, str]] = {
    "MachineConfiguration": {"huge_pages": "None|2M|Transparent"},
    "SnapshotLoadParams": {"huge_pages": "Snapshot|None|Transparent|2M"},
    "Metrics": {"emit_id": "boolean", "properties": "{string}"},
}


def compact(definitions: Mapping[str, Any]) -> Types:
    """Return the table for the types of an OpenAPI or Swagger description."""
    return {
        name: {
            field: _kind(kind, definitions) + ("!" if field in body.get("required", ()) else "")
            for field, kind in body["properties"].items()
        }
        for name, body in sorted(definitions.items())
        if "properties" in body
    }


def _kind(kind: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        target = definitions[name]
        return f"@{name}" if "properties" in target else _kind(target, definitions)
    if "enum" in kind:
        # An unquoted Off is false to YAML.
        return "|".join("Off" if choice is False else str(choice) for choice in kind["enum"])
    match kind.get("type"):
        case "integer":
            return f"integer {kind.get('minimum', 0)}..{kind.get('maximum', '')}"
        case "array":
            return f"[{_kind(kind['items'], definitions)}]"
        case "object" if isinstance(kind.get("additionalProperties"), dict):
            return f"{{{_kind(kind['additionalProperties'], definitions)}}}"
        case "string" | "boolean" | "number" as word:
            return str(word)
    return "any"


def main(directory: Path) -> None:
    """Write every table."""
    import yaml  # type: ignore[import-untyped]  # only this command needs it

    for source in sorted(directory.glob("*-v*.yaml")):
        vmm, _, version = source.stem.rpartition("-v")
        described = yaml.safe_load(source.read_text())
        if vmm == "firecracker":
            types = compact(described["definitions"])
            _fix(types, _FIRECRACKER_FIXES)
        else:
            types = compact(described["components"]["schemas"])
            _fix(types, _CLOUD_HYPERVISOR_FIXES)
        _write(vmm, version, types)
        if (vmm, version) == ("firecracker", "1.16.1"):
            for name, fields in _FIRECRACKER_1_17.items():
                types[name] |= fields
            _write(vmm, "1.17.0", types)


def _fix(types: Types, fixes: Mapping[str, Mapping[str, str]]) -> None:
    for name, fields in fixes.items():
        if name in types or name not in _NEW_TYPES:
            types.get(name, {}).update(fields)
        else:
            types[name] = dict(fields)


def _write(vmm: str, version: str, types: Types) -> None:
    SCHEMAS.mkdir(exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(fields)}" for name, fields in types.items()]
    (SCHEMAS / f"{vmm}-{version}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
