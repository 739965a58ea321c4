"""Firecracker's requests: which there are, when they are allowed, what they do."""

from __future__ import annotations

import json
from typing import Any

from tests.standins import schema
from tests.standins.fc.controller import Controller
from tests.standins.fc.fault import Fault
from tests.standins.http_dialect import Request, Response, json_object
from tests.standins.settings import nearest_table

SERVER = "Firecracker API"
_HOTPLUG = (1, 16)
_SINCE_1_14 = (1, 14)
_JSON = "An error occurred when deserializing the json body of a request: {}."


class Api:
    """Turns requests into calls of a controller.

    Args:
        controller: does the work.
        version: of Firecracker, as text.
    """

    def __init__(self, controller: Controller, version: str) -> None:
        self._do = controller
        self._version = tuple(int(part) for part in version.split(".")[:3])
        self._types = schema.load("firecracker", nearest_table("firecracker", version))

    def handle(self, request: Request) -> Response:
        """Answer a request."""
        self._do.log("Info", f"The API server received a {request.method} on {request.path}.")
        try:
            answer, deprecated = self._dispatch(request)
        except Fault as fault:
            self._do.log("Error", f"Received Error. Message: {fault}")
            body = json.dumps({"fault_message": str(fault)}).encode()
            return Response(fault.status, body)
        if answer is None:
            return Response(204, deprecated=deprecated)
        return Response(200, json.dumps(answer).encode(), deprecated)

    def _dispatch(self, request: Request) -> tuple[Any, bool]:
        tokens = request.path.lstrip("/").rstrip("/").split("/")
        method, body = request.method, request.body
        optional = method == "PATCH" and tokens[0] == "balloon"
        if method == "GET" and body is not None:
            raise Fault("GET request cannot have a body.")
        if method in ("PUT", "PATCH") and body is None and not optional:
            raise Fault(f"Empty {method} request.")
        if method == "DELETE" and body is not None:
            raise Fault("Empty Delete request.")
        call = getattr(self, f"_{method.lower()}_{tokens[0].replace('-', '_') or 'root'}", None)
        if call is None:
            raise Fault(f"Invalid request method and/or path: {method} {tokens[0]}.")
        result = call(tokens[1:], body)
        return result if isinstance(result, tuple) else (result, False)

    def _unknown(self, method: str, path: str) -> None:
        raise Fault(f"Invalid request method and/or path: {method} {path}.")

    def _since(self, version: tuple[int, ...], method: str, path: str) -> None:
        if self._version < version:
            self._unknown(method, path)

    def _body(self, kind: str, body: bytes | None) -> dict[str, Any]:
        try:
            value = json.loads(body or b"", object_pairs_hook=json_object)
            checked: dict[str, Any] = schema.check(self._types, kind, value, unknown="refuse")
        except (ValueError, schema.Invalid) as error:
            raise Fault(_JSON.format(error)) from error
        return checked

    def _with_id(
        self, tokens: list[str], body: bytes | None, kind: str, field: str
    ) -> dict[str, Any]:
        name = _checked_id(tokens)
        config = self._body(kind, body)
        if config[field] != name:
            raise Fault(f"The id from the path [{name}] does not match the id from the body!")
        return config

    # -- GET ---------------------------------------------------------------------------

    def _get_root(self, tokens: list[str], body: bytes | None) -> Any:
        return self._do.info()

    def _get_version(self, tokens: list[str], body: bytes | None) -> Any:
        return {"firecracker_version": self._do.version}

    def _get_vm(self, tokens: list[str], body: bytes | None) -> Any:
        if tokens[:1] != ["config"]:
            self._unknown("GET", "vm")
        config = self._do.resources.describe()
        if self._version < _SINCE_1_14:
            del config["pmem"], config["memory-hotplug"]
        return config

    def _get_machine_config(self, tokens: list[str], body: bytes | None) -> Any:
        return self._do.resources.machine

    def _get_balloon(self, tokens: list[str], body: bytes | None) -> Any:
        if tokens == ["statistics"]:
            return self._do.balloon_statistics()
        if tokens:
            raise Fault(f"Unrecognized GET request path `{tokens[0]}`.")
        return self._do.balloon()

    def _get_mmds(self, tokens: list[str], body: bytes | None) -> Any:
        return self._do.resources.mmds_data or {}

    def _get_hotplug(self, tokens: list[str], body: bytes | None) -> Any:
        self._since(_SINCE_1_14, "GET", "hotplug")
        self._memory_path("GET", tokens)
        return self._do.memory_status()

    def _memory_path(self, method: str, tokens: list[str]) -> None:
        if tokens[:1] != ["memory"]:
            self._unknown(method, "hotplug")

    # -- PUT ---------------------------------------------------------------------------

    def _put_actions(self, tokens: list[str], body: bytes | None) -> Any:
        match self._body("InstanceActionInfo", body)["action_type"]:
            case "InstanceStart":
                self._do.start()
            case "FlushMetrics":
                self._do.flush_metrics()
            case _:
                self._do.send_ctrl_alt_del()

    def _put_machine_config(self, tokens: list[str], body: bytes | None) -> Any:
        config = self._body("MachineConfiguration", body)
        self._do.set_machine(
            {"smt": False, "track_dirty_pages": False, "huge_pages": "None", **config}
        )
        return None, config.get("cpu_template", "None") != "None"

    def _put_boot_source(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.configure("set_boot", self._body("BootSource", body))

    def _put_drives(self, tokens: list[str], body: bytes | None) -> Any:
        config = self._with_id(tokens, body, "Drive", "drive_id")
        self._do.put_device("drive", config, hot=self._version >= _HOTPLUG)

    def _put_network_interfaces(self, tokens: list[str], body: bytes | None) -> Any:
        config = self._with_id(tokens, body, "NetworkInterface", "iface_id")
        self._do.put_device("net", config, hot=self._version >= _HOTPLUG)

    def _put_pmem(self, tokens: list[str], body: bytes | None) -> Any:
        self._since(_SINCE_1_14, "PUT", "pmem")
        config = self._with_id(tokens, body, "Pmem", "id")
        self._do.put_device("pmem", config, hot=self._version >= _HOTPLUG)

    def _put_vsock(self, tokens: list[str], body: bytes | None) -> Any:
        config = self._body("Vsock", body)
        self._do.put_vsock(config)
        return None, "vsock_id" in config

    def _put_balloon(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.configure("put_balloon", self._body("Balloon", body))

    def _put_entropy(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.set_part("entropy", self._body("EntropyDevice", body))

    def _put_cpu_config(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.set_part("cpu", self._body("CpuConfig", body), configures=False)

    def _put_serial(self, tokens: list[str], body: bytes | None) -> Any:
        self._since(_SINCE_1_14, "PUT", "serial")
        self._do.set_part("serial", self._body("SerialDevice", body), configures=False)

    def _put_hotplug(self, tokens: list[str], body: bytes | None) -> Any:
        self._since(_SINCE_1_14, "PUT", "hotplug")
        self._memory_path("PUT", tokens)
        self._do.configure("put_memory_hotplug", self._body("MemoryHotplugConfig", body))

    def _put_logger(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.set_logger(self._body("Logger", body))

    def _put_metrics(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.set_metrics(self._body("Metrics", body))

    def _put_mmds(self, tokens: list[str], body: bytes | None) -> Any:
        if tokens[:1] == ["config"]:
            self._do.set_part("mmds", self._body("MmdsConfig", body))
        elif tokens:
            raise Fault(f"Unrecognized PUT request path `{tokens[0]}`.")
        else:
            self._do.put_mmds(_any_json(body))

    def _put_snapshot(self, tokens: list[str], body: bytes | None) -> Any:
        match tokens[:1]:
            case ["create"]:
                self._do.create_snapshot(self._body("SnapshotCreateParams", body))
                return None
            case ["load"]:
                return self._load_snapshot(self._body("SnapshotLoadParams", body))
            case []:
                raise Fault("Missing snapshot operation type.")
        self._unknown("PUT", f"/snapshot/{tokens[0]}")
        return None

    def _load_snapshot(self, config: dict[str, Any]) -> Any:
        if ("mem_backend" in config) == ("mem_file_path" in config):
            count = "too many fields" if "mem_backend" in config else "missing field"
            raise Fault(_JSON.format(f"{count}: either `mem_backend` or `mem_file_path`"))
        self._do.load_snapshot(config)
        old = config.get("mem_file_path") or config.get("enable_diff_snapshots")
        return None, bool(old)

    # -- PATCH -------------------------------------------------------------------------

    def _patch_machine_config(self, tokens: list[str], body: bytes | None) -> Any:
        fields = self._types["MachineConfiguration"]
        relaxed = {name: kind.rstrip("!") for name, kind in fields.items()}
        types = {**self._types, "MachineConfiguration": relaxed}
        try:
            value = json.loads(body or b"", object_pairs_hook=json_object)
            config = schema.check(types, "MachineConfiguration", value, unknown="refuse")
        except (ValueError, schema.Invalid) as error:
            raise Fault(_JSON.format(error)) from error
        if not config:
            raise Fault("Empty PATCH request.")
        self._do.set_machine(config)

    def _patch_drives(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.patch_drive(self._with_id(tokens, body, "PartialDrive", "drive_id"))

    def _patch_network_interfaces(self, tokens: list[str], body: bytes | None) -> Any:
        config = self._with_id(tokens, body, "PartialNetworkInterface", "iface_id")
        self._do.patch_limits("nets", config["iface_id"], config)

    def _patch_pmem(self, tokens: list[str], body: bytes | None) -> Any:
        self._since(_HOTPLUG, "PATCH", "pmem")
        config = self._with_id(tokens, body, "PartialPmem", "id")
        self._do.patch_limits("pmems", config["id"], config)

    def _patch_vm(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.set_state(self._body("Vm", body)["state"])

    def _patch_balloon(self, tokens: list[str], body: bytes | None) -> Any:
        if tokens[:1] == ["statistics"] and body is not None:
            self._do.set_statistics_interval(self._body("BalloonStatsUpdate", body))
        elif tokens[:1] == ["hinting"] and self._version >= _SINCE_1_14:
            raise Fault("stand-in: QEMU has no free page hinting without a migration")
        elif body is None:
            raise Fault("Empty PATCH request.")
        elif tokens:
            raise Fault(f"Unrecognized PATCH request path `{tokens[0]}`.")
        else:
            self._do.set_balloon(self._body("BalloonUpdate", body))

    def _patch_mmds(self, tokens: list[str], body: bytes | None) -> Any:
        self._do.patch_mmds(_any_json(body))

    def _patch_hotplug(self, tokens: list[str], body: bytes | None) -> Any:
        self._since(_SINCE_1_14, "PATCH", "hotplug")
        self._memory_path("PATCH", tokens)
        self._do.request_memory(self._body("MemoryHotplugSizeUpdate", body))

    # -- DELETE ------------------------------------------------------------------------

    def _delete_drives(self, tokens: list[str], body: bytes | None) -> Any:
        self._delete("drive", "drives", tokens)

    def _delete_network_interfaces(self, tokens: list[str], body: bytes | None) -> Any:
        self._delete("net", "network-interfaces", tokens)

    def _delete_pmem(self, tokens: list[str], body: bytes | None) -> Any:
        self._delete("pmem", "pmem", tokens)

    def _delete(self, kind: str, path: str, tokens: list[str]) -> None:
        self._since(_HOTPLUG, "DELETE", path)
        self._do.unplug(kind, _checked_id(tokens))


def _checked_id(tokens: list[str]) -> str:
    if not tokens or not tokens[0]:
        raise Fault("The ID cannot be empty.")
    if not all(char == "_" or char.isalnum() for char in tokens[0]):
        raise Fault("API Resource IDs can only contain alphanumeric characters and underscores.")
    return tokens[0]


def _any_json(body: bytes | None) -> Any:
    try:
        return json.loads(body or b"")
    except ValueError as error:
        raise Fault(_JSON.format(error)) from error
