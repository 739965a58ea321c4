"""Cloud Hypervisor's requests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.standins import schema
from tests.standins.clh import errors
from tests.standins.clh.errors import Refused
from tests.standins.clh.vmm import Vmm
from tests.standins.http_dialect import Request, Response
from tests.standins.qemu import QmpError
from tests.standins.settings import nearest_table

SERVER = "Cloud Hypervisor API"
PAYLOAD_MAX = 4 << 20
_ROOT = "/api/v1/"
_FEATURES = ["kvm"]
_ADD = {
    "vm.add-disk": ("disk", "DiskConfig"),
    "vm.add-net": ("net", "NetConfig"),
    "vm.add-fs": ("fs", "FsConfig"),
    "vm.add-pmem": ("pmem", "PmemConfig"),
    "vm.add-vsock": ("vsock", "VsockConfig"),
    "vm.add-device": ("device", "DeviceConfig"),
}
_NOT_PLAYED = (
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.add-generic-vhost-user",
    "vm.resize-zone",
    "vm.receive-migration",
    "vm.send-migration",
)


class Api:
    """Turns requests into calls of the VMM.

    Args:
        vmm: does the work.
        version: of Cloud Hypervisor, such as ``53.0``.
    """

    def __init__(self, vmm: Vmm, version: str) -> None:
        self._vmm = vmm
        self._version = version
        self._numbers = tuple(int(part) for part in version.split("."))
        self._types = schema.load("cloud-hypervisor", nearest_table("cloud-hypervisor", version))
        self._bare: dict[str, Callable[[], Any]] = {
            "vm.boot": vmm.boot,
            "vm.delete": vmm.delete,
            "vm.shutdown": vmm.shutdown,
            "vm.reboot": vmm.reboot,
            "vm.pause": vmm.pause,
            "vm.resume": vmm.resume,
            "vm.power-button": vmm.power_button,
            "vm.nmi": vmm.nmi,
        }
        self._with_body: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "vm.create": ("VmConfig", vmm.create),
            "vm.remove-device": ("VmRemoveDevice", lambda body: vmm.remove(body["id"])),
            "vm.resize": ("VmResize", vmm.resize),
            "vm.snapshot": ("VmSnapshotConfig", lambda body: vmm.snapshot(body["destination_url"])),
        }
        if "VmResizeDisk" in self._types:
            self._with_body["vm.resize-disk"] = ("VmResizeDisk", vmm.resize_disk)
        self._get: dict[str, Callable[[], Any]] = {
            "vm.info": vmm.info,
            "vm.counters": vmm.counters,
            "vmm.ping": self._ping,
        }

    def handle(self, request: Request) -> Response:
        """Answer a request."""
        name = request.path.removeprefix(_ROOT) if request.path.startswith(_ROOT) else ""
        try:
            answer = self._dispatch(name, request)
        except Refused as error:
            return errors.response(error, self._numbers, creating=name == "vm.create")
        except QmpError as error:
            refused = Refused("internal", f"stand-in: {error}")
            return errors.response(refused, self._numbers, creating=False)
        if name == "vmm.shutdown":
            return Response(200)
        return Response(204) if answer is None else Response(200, json.dumps(answer).encode())

    def _dispatch(self, name: str, request: Request) -> Any:
        known = {*self._bare, *self._with_body, *self._get, *_ADD, *_NOT_PLAYED}
        if name not in known | {"vm.restore", "vmm.shutdown"}:
            raise Refused("not_found", "Not Found")
        wanted = "GET" if name in self._get else "PUT"
        if request.method != wanted:
            raise Refused("bad_request", "Bad Request")
        if name in self._get:
            return self._get[name]()
        if name == "vmm.shutdown":
            return self._vmm.end()
        if name in self._bare:
            if request.body is not None:
                raise Refused("bad_request", "Bad Request")
            return self._bare[name]()
        if request.body is None:
            raise Refused("bad_request", "Bad Request")
        if name in _NOT_PLAYED:
            raise Refused("internal", f"stand-in: {name} is not played")
        if name in _ADD:
            return self._add(name, request)
        if name == "vm.restore":
            return self._restore(request)
        kind, call = self._with_body[name]
        return call(self._body(kind, request.body))

    def _add(self, name: str, request: Request) -> Any:
        kind, type_name = _ADD[name]
        device = self._body(type_name, request.body)
        if kind == "device" and request.fds:
            raise Refused("internal", "stand-in: no VFIO by descriptor")
        if any(fd <= 2 for fd in request.fds):
            raise Refused("config", "Reserved fd number (<= 2)")
        for fd in request.fds:
            os.set_inheritable(fd, False)
        return self._vmm.add(kind, device, request.fds)

    def _restore(self, request: Request) -> Any:
        body = self._body("RestoreConfig", request.body)
        return self._vmm.restore(body, request.fds)

    def _body(self, kind: str, body: bytes | None) -> Any:
        try:
            return schema.check(self._types, kind, json.loads(body or b""), unknown="drop")
        except (ValueError, schema.Invalid) as error:
            raise Refused("json", "Failed to deserialize JSON", str(error)) from error

    def _ping(self) -> Any:
        return {
            "build_version": f"v{self._version}",
            "version": f"{self._version}.0",
            "pid": os.getpid(),
            "features": _FEATURES,
        }
