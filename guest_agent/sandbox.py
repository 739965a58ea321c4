"""The RPCs about the sandbox as a whole: its start and end, files, volumes."""

from __future__ import annotations

import _socket
import os

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import files, libc
from .children import find_program
from .container import BASE
from .log import log
from .storage import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from protos.lite import Message

    from .children import Children
    from .loop import Event, Loop
    from .service import Containers
    from .storage import Storages

_RESOLV_CONF = f"{BASE}/sandbox/resolv.conf"
_BYTES, _INODES = 1, 2
_DIAGNOSTIC_LIMIT = 4096


class Sandbox:
    """The one sandbox of the machine.

    Args:
        finished: set when the agent is to end.
        owns_machine: whether hostname, DNS and kernel modules are the agent's to set.
    """

    __slots__ = (
        "_children",
        "_containers",
        "_finished",
        "_loop",
        "_owns_machine",
        "_points",
        "_storages",
        "id",
    )

    def __init__(
        self,
        loop: Loop,
        children: Children,
        containers: Containers,
        storages: Storages,
        finished: Event,
        owns_machine: bool,
    ) -> None:
        self._loop = loop
        self._children = children
        self._containers = containers
        self._storages = storages
        self._finished = finished
        self._owns_machine = owns_machine
        self._points: list[str] = []
        self.id: str | None = None

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of grpc.AgentService in this class."""
        return {
            "CreateSandbox": self.create,
            "DestroySandbox": self.destroy,
            "UpdateEphemeralMounts": self.update_mounts,
            "CopyFile": self.copy_file,
            "GetVolumeStats": self.volume_stats,
            "ResizeVolume": self.resize_volume,
            "GetDiagnosticData": self.diagnostic_data,
            "RemoveStaleVirtiofsShareMounts": self.remove_stale_mounts,
        }

    async def create(self, request: Message) -> None:
        """CreateSandbox."""
        if self.id is not None:
            raise TtrpcError(status.FAILED_PRECONDITION, f"sandbox {self.id!r} exists")
        self.id = request["sandbox_id"]
        try:
            if self._owns_machine:
                await self._own_machine(request)
            self._points = await self._storages.add_all(request["storages"])
            if request["guest_hook_path"]:
                self._find_hooks(request["guest_hook_path"])
        except BaseException:
            self.id = None
            raise

    async def _own_machine(self, request: Message) -> None:
        for module in request["kernel_modules"]:
            argv = [find_program("modprobe"), "--", module["name"], *module["parameters"]]
            code, output = await self._children.output(argv)
            if code:
                text = f"modprobe {module['name']}: {output.decode(errors='replace').strip()}"
                raise TtrpcError(status.INTERNAL, text)
        if request["hostname"]:
            _socket.sethostname(request["hostname"])
        if request["dns"]:
            with open(_RESOLV_CONF, "w") as file:
                file.write("\n".join(request["dns"]) + "\n")
            mount(_RESOLV_CONF, "/etc/resolv.conf", "bind", [])
        for name, value in request["sysctl"].items():
            set_sysctl(name, value)

    def _find_hooks(self, directory: str) -> None:
        from . import guest_hooks  # few images have any

        self._containers.hooks = guest_hooks.find(directory)
        if not self._containers.hooks:
            log("warn", "the image has no hooks there", path=directory)

    async def destroy(self, _request: Message) -> None:
        """DestroySandbox; the agent ends once the answer is out."""
        await self._containers.remove_all()
        self._storages.release_all()
        self._points = []
        self.id = None
        self._finished.set()

    async def update_mounts(self, request: Message) -> None:
        """UpdateEphemeralMounts."""
        self._storages.update(request["storages"])

    async def copy_file(self, request: Message) -> None:
        """CopyFile."""
        files.copy(request)

    async def push_files(self, request: Message) -> None:
        """Extension.PushFiles."""
        files.push(request)

    async def pull_file(self, request: Message) -> Mapping[str, Any]:
        """Extension.PullFile."""
        return {"data": files.pull(request)}

    async def resize_volume(self, request: Message) -> None:
        """ResizeVolume: let the file system of a disk that has grown fill it."""
        from . import grow  # few guests ever need it

        await grow.grow(self._loop, request["volume_guest_path"], request["size"])

    async def volume_stats(self, request: Message) -> Mapping[str, Any]:
        """GetVolumeStats."""
        path = request["volume_guest_path"]
        try:
            info = os.statvfs(path)
        except OSError as error:
            raise TtrpcError(status.NOT_FOUND, f"volume {path}: {error.strerror}") from None
        unit = info.f_frsize
        return {
            "usage": [
                {
                    "available": info.f_bavail * unit,
                    "total": info.f_blocks * unit,
                    "used": (info.f_blocks - info.f_bfree) * unit,
                    "unit": _BYTES,
                },
                {
                    "available": info.f_favail,
                    "total": info.f_files,
                    "used": info.f_files - info.f_ffree,
                    "unit": _INODES,
                },
            ],
            "volume_condition": {"abnormal": False, "message": "OK"},
        }

    async def diagnostic_data(self, request: Message) -> Mapping[str, Any]:
        """GetDiagnosticData: the head of a container's termination message."""
        if request["log_type"] != "termination_log":
            raise TtrpcError(status.INVALID_ARGUMENT, f"unknown log type {request['log_type']!r}")
        container = self._containers.get(request["container_id"])
        path = container.annotation("io.kubernetes.container.terminationMessagePath")
        if not path.startswith("/"):
            raise TtrpcError(status.NOT_FOUND, f"{container.id} has no termination message path")
        data = files.read_below(container.rootfs, path, _DIAGNOSTIC_LIMIT)
        return {"data": data.decode(errors="replace")}

    async def remove_stale_mounts(self, _request: Message) -> None:
        """RemoveStaleVirtiofsShareMounts: detach mounts whose host directory is gone."""
        shared = f"{BASE}/shared/containers/"
        with open("/proc/self/mounts") as file:
            points = [line.split()[1] for line in file]
        for point in points:
            if point.startswith(shared) and not os.path.exists(point):
                try:
                    libc.umount(point)
                except OSError as error:
                    log("warn", "can't detach stale mount", point=point, error=error)


def set_sysctl(name: str, value: str) -> None:
    """Set a kernel parameter, named with dots or slashes.

    Raises:
        TtrpcError: INVALID_ARGUMENT when this kernel has none of the name, or refuses the value.
    """
    parts = name.replace(".", "/").split("/")
    try:
        if "" in parts:
            raise FileNotFoundError(2, "no such parameter")
        with open("/proc/sys/" + "/".join(parts), "w") as file:
            file.write(value)
    except OSError as error:
        text = f"sysctl {name} = {value!r}: {error.strerror}"
        raise TtrpcError(status.INVALID_ARGUMENT, text) from None
