"""The RPCs about containers and processes."""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from . import cgroup, devices, jsonlite
from .container import Container, check_id
from .loop import Event
from .namespaces import SharedNamespaces
from .spec import to_oci
from .storage import enter_submounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from protos.lite import Message

    from .container import Runtime
    from .rpc import Stream
    from .stdio import Output
    from .storage import Storages

# A unary response has to leave room for its envelope in the 4 MiB of a message.
_READ_LIMIT = 1 << 20
_OOM_BACKLOG = 256
_EVERY_DEVICE = "io.katapy.every-device"  # set by the shim for privileged containers


class Containers:
    """The containers of the sandbox, and the RPCs about them."""

    __slots__ = (
        "_containers",
        "_namespaces",
        "_oom",
        "_oom_arrived",
        "_runtime",
        "_storages",
        "hooks",
    )

    # Calls that only wait or read; they end with their connection.
    WAITS = frozenset({"WaitProcess", "ReadStdout", "ReadStderr", "GetOOMEvent"})

    def __init__(self, runtime: Runtime, storages: Storages) -> None:
        self._runtime = runtime
        self._storages = storages
        self._containers: dict[str, Container | None] = {}
        self._namespaces = SharedNamespaces()
        self._oom: deque[str] = deque(maxlen=_OOM_BACKLOG)
        self._oom_arrived = Event(runtime.loop)
        self.hooks: dict[str, list[dict[str, Any]]] = {}  # of the guest's image, by kind

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of grpc.AgentService in this class."""
        return {
            "CreateContainer": self.create,
            "StartContainer": self.start,
            "RemoveContainer": self.remove,
            "ExecProcess": self.exec,
            "SignalProcess": self.signal,
            "WaitProcess": self.wait,
            "UpdateContainer": self.update,
            "StatsContainer": self.stats,
            "PauseContainer": self.pause,
            "ResumeContainer": self.resume,
            "WriteStdin": self.write_stdin,
            "ReadStdout": self.read_stdout,
            "ReadStderr": self.read_stderr,
            "CloseStdin": self.close_stdin,
            "TtyWinResize": self.resize,
            "GetOOMEvent": self.oom_event,
        }

    def get(self, container_id: str) -> Container:
        """The container with an id.

        Raises:
            TtrpcError: INVALID_ARGUMENT for an unknown one, as Kata's agent answers.
        """
        container = self._containers.get(container_id)
        if container is None:
            raise TtrpcError(status.INVALID_ARGUMENT, f"container {container_id!r} not found")
        return container

    async def create(self, request: Message) -> None:
        """CreateContainer."""
        container_id = request["container_id"]
        check_id(container_id)
        if container_id in self._containers:
            raise TtrpcError(status.ALREADY_EXISTS, f"container {container_id} exists")
        for field in ("shared_mounts", "stdin_port", "stdout_port", "stderr_port"):
            if request[field]:
                text = f"CreateContainerRequest.{field} is not implemented by this agent"
                raise TtrpcError(status.UNIMPLEMENTED, text)
        spec, config = _config(request["oci_spec_json"], request["OCI"], "OCI spec")
        self._containers[container_id] = None  # taken from now on
        container = Container(self._runtime, container_id, spec)
        points: list[str] = []
        try:
            if request["devices"]:
                await devices.add_all(
                    self._runtime.loop, self._runtime.children, request["devices"], spec
                )
            points = await self._storages.add_all(request["storages"], container.bundle)
            enter_submounts(spec)
            if request["oci_spec_json"]:
                if request["sandbox_pidns"]:
                    self._namespaces.share_pid()
            else:
                self._namespaces.join(spec, pid=request["sandbox_pidns"])
            given = bool(request["devices"]) or not request["oci_spec_json"]
            if container.annotation(_EVERY_DEVICE):
                devices.add_nodes_of_guest(spec)
                given = True
            if self.hooks:
                from . import guest_hooks

                guest_hooks.add(spec, self.hooks)
                given = True
            if given:
                config = jsonlite.dumps(spec).encode()
            cgroup.allow_huge_pages((spec.get("linux") or {}).get("resources") or {})
            init = await container.create(config)
            try:
                if not request["oci_spec_json"]:
                    self._namespaces.keep(init.pid, pid=request["sandbox_pidns"])
            except OSError:
                await container.remove()
                raise
        except BaseException:
            self._storages.release(points)
            del self._containers[container_id]
            raise
        container.storages = points
        self._containers[container_id] = container
        if container.cgroup:
            container.oom = cgroup.OomWatch(
                container.cgroup, lambda: self._report_oom(container_id)
            )
            self._runtime.background(container.oom.run(self._runtime.loop))

    async def start(self, request: Message) -> None:
        """StartContainer."""
        await self.get(request["container_id"]).start()

    async def remove(self, request: Message) -> None:
        """RemoveContainer."""
        container = self.get(request["container_id"])
        self._containers[container.id] = None
        try:
            await container.remove()
        finally:
            self._storages.release(container.storages)
            del self._containers[container.id]

    async def remove_all(self) -> None:
        """Remove every container, at the end of the sandbox."""
        for container_id, container in list(self._containers.items()):
            if container is not None:
                await self.remove(_Id(container_id))  # type: ignore[arg-type]
        self._namespaces.release()

    async def exec(self, request: Message) -> None:
        """ExecProcess."""
        container = self.get(request["container_id"])
        verbatim = request["oci_process_json"]
        process, encoded = _config(verbatim, request["process"], "process")
        if not verbatim:
            container.inherit(process)
            encoded = jsonlite.dumps(process).encode()
        await container.exec(request["exec_id"], process, encoded)

    async def signal(self, request: Message) -> None:
        """SignalProcess."""
        container = self.get(request["container_id"])
        await container.signal(request["exec_id"], request["signal"])

    async def wait(self, request: Message) -> Mapping[str, Any]:
        """WaitProcess."""
        return {"status": await self.get(request["container_id"]).wait(request["exec_id"])}

    async def update(self, request: Message) -> None:
        """UpdateContainer."""
        container = self.get(request["container_id"])
        cgroup.need(container.cgroup)
        resources, _encoded = _config(
            request["oci_resources_json"], request["resources"], "resources"
        )
        await container.update(resources)

    async def stats(self, request: Message) -> Mapping[str, Any]:
        """StatsContainer."""
        path = self.get(request["container_id"]).cgroup
        figures = cgroup.statistics(path) if path else {}
        return {"cgroup_stats": figures, "network_stats": cgroup.network()}

    async def pause(self, request: Message) -> None:
        """PauseContainer."""
        path = cgroup.need(self.get(request["container_id"]).cgroup)
        await cgroup.freeze(self._runtime.loop, path, True)

    async def resume(self, request: Message) -> None:
        """ResumeContainer."""
        path = cgroup.need(self.get(request["container_id"]).cgroup)
        await cgroup.freeze(self._runtime.loop, path, False)

    async def write_stdin(self, request: Message) -> Mapping[str, Any]:
        """WriteStdin; no data closes it, as Kata's Rust runtime does."""
        stdin = self.get(request["container_id"]).find(request["exec_id"]).stdin
        data = request["data"]
        try:
            await (stdin.write(data) if data else stdin.finish())
        except BrokenPipeError as error:
            raise TtrpcError(status.FAILED_PRECONDITION, str(error)) from None
        return {"len": len(data)}

    async def read_stdout(self, request: Message) -> Mapping[str, Any]:
        """ReadStdout."""
        process = self.get(request["container_id"]).find(request["exec_id"])
        return await _read(process.stdout, request["len"])

    async def read_stderr(self, request: Message) -> Mapping[str, Any]:
        """ReadStderr; a process with a terminal has only the one stream."""
        process = self.get(request["container_id"]).find(request["exec_id"])
        return await _read(process.stderr or process.stdout, request["len"])

    async def close_stdin(self, request: Message) -> None:
        """CloseStdin."""
        await self.get(request["container_id"]).find(request["exec_id"]).stdin.finish()

    async def resize(self, request: Message) -> None:
        """TtyWinResize."""
        stdin = self.get(request["container_id"]).find(request["exec_id"]).stdin
        if not stdin.terminal:
            raise TtrpcError(status.INVALID_ARGUMENT, "the process has no terminal")
        try:
            stdin.resize(request["row"] & 0xFFFF, request["column"] & 0xFFFF)
        except OSError:
            raise TtrpcError(status.NOT_FOUND, "ESRCH: No such process") from None

    async def stdio(self, stream: Stream) -> None:
        """Extension.Stdio."""
        first = await stream.receive()
        if first is None:
            raise TtrpcError(status.INVALID_ARGUMENT, "the first frame must name the process")
        process = self.get(first["container_id"]).find(first["exec_id"])
        await process.attach(self._runtime.loop, stream, first["credit"])

    async def oom_event(self, _request: Message) -> Mapping[str, Any]:
        """GetOOMEvent."""
        while not self._oom:
            await self._oom_arrived.wait()
        return {"container_id": self._oom.popleft()}

    def _report_oom(self, container_id: str) -> None:
        self._oom.append(container_id)
        self._oom_arrived.pulse()


class _Id(dict):  # type: ignore[type-arg]
    """A request that holds nothing but a container id."""

    def __init__(self, container_id: str) -> None:
        super().__init__(container_id=container_id)


async def _read(output: Output, limit: int) -> Mapping[str, Any]:
    return {"data": await output.read(min(limit or _READ_LIMIT, _READ_LIMIT))}


def _config(verbatim: bytes, message: Message | None, what: str) -> tuple[dict[str, Any], bytes]:
    """What a request describes, as an OCI object and as its JSON encoding.

    Raises:
        TtrpcError: INVALID_ARGUMENT.
    """
    if verbatim:
        try:
            value = jsonlite.loads(verbatim)
        except ValueError as error:
            raise TtrpcError(status.INVALID_ARGUMENT, f"malformed {what}: {error}") from None
        if not isinstance(value, dict):
            raise TtrpcError(status.INVALID_ARGUMENT, f"malformed {what}: not an object")
        return value, verbatim
    if message is None:
        raise TtrpcError(status.INVALID_ARGUMENT, f"the request has no {what}")
    value = to_oci(message)
    return value, jsonlite.dumps(value).encode()
