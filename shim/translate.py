"""Between the wire and the core: the only module that knows both sides.

Protobuf messages become the plain values of ``requests``, events and states become
messages, and errors become ttrpc statuses.

``Any`` type URLs are bare message names, and JSON-typed ones are containerd's
``types.containerd.io/…``; ``Any.Pack`` would write a prefix containerd does not
accept (contract §2.8).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd import events_pb2, runc_options_pb2, task_types_pb2, task_v2_pb2, types_pb2
from protos.kata import agent_pb2
from shim import events
from shim.config.load import check_option_type
from shim.errors import InvalidArgument, KatapyError
from shim.metrics import cgroup_v1, cgroup_v2
from shim.oci.spec import load_process, load_resources
from shim.pod.process import Exit, Process
from shim.pod.state import ProcessState
from shim.requests import CreateContainer, ExecProcess, RootfsMount, StdioPaths
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from vmm import errors as vmm_errors

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

STATUS: Mapping[ProcessState, task_types_pb2.Status] = {
    ProcessState.NEW: task_types_pb2.UNKNOWN,
    ProcessState.CREATED: task_types_pb2.CREATED,
    ProcessState.RUNNING: task_types_pb2.RUNNING,
    ProcessState.STOPPED: task_types_pb2.STOPPED,
    ProcessState.PAUSED: task_types_pb2.PAUSED,
}

_VMM_CODES: tuple[tuple[type[vmm_errors.VmmError], int], ...] = (
    (vmm_errors.Unsupported, status.UNIMPLEMENTED),
    (vmm_errors.InvalidState, status.FAILED_PRECONDITION),
    (vmm_errors.NotFound, status.NOT_FOUND),
    (vmm_errors.Conflict, status.ALREADY_EXISTS),
    (vmm_errors.InvalidConfig, status.INVALID_ARGUMENT),
    (vmm_errors.GuestTimeout, status.DEADLINE_EXCEEDED),
    (vmm_errors.LimitExceeded, status.RESOURCE_EXHAUSTED),
    (vmm_errors.VmmGone, status.UNAVAILABLE),
)


def error(err: Exception) -> TtrpcError:
    """Give any error of ours its wire status.

    Args:
        err: what a handler raised; a group is reduced to its first member.
    """
    while isinstance(err, ExceptionGroup):
        err = err.exceptions[0]
    if isinstance(err, TtrpcError):
        return err
    if isinstance(err, KatapyError):
        return TtrpcError(err.code, str(err))
    for kind, code in _VMM_CODES:
        if isinstance(err, kind):
            return TtrpcError(code, str(err))
    if isinstance(err, trio.TooSlowError):
        return TtrpcError(status.DEADLINE_EXCEEDED, str(err) or "deadline exceeded")
    return TtrpcError(status.UNKNOWN, f"{type(err).__name__}: {err}")


def timestamp(nanoseconds: int) -> Timestamp:
    """Make a Timestamp of ns since the epoch."""
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def pack(message: Message) -> AnyMessage:
    """Wrap a message with its bare name as type URL."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def _check_type(value: AnyMessage, type_url: str, what: str) -> None:
    if value.type_url.removeprefix("type.googleapis.com/") != type_url:
        raise InvalidArgument(f"{what} is of type {value.type_url!r}, expected {type_url}")


def create_request(request: task_v2_pb2.CreateTaskRequest) -> CreateContainer:
    """Take Task.Create apart.

    Raises:
        InvalidArgument: for an empty id, or options unreadable or of an unknown type.
    """
    if not request.id:
        raise InvalidArgument("create: the container id is empty")
    check_option_type(request.options.type_url)
    io_uid = io_gid = 0
    if request.options.type_url.rsplit("/", 1)[-1] == "containerd.runc.v1.Options":
        try:
            options = runc_options_pb2.Options.FromString(request.options.value)
        except DecodeError as err:
            raise InvalidArgument(f"create {request.id}: unreadable runc options: {err}") from None
        io_uid, io_gid = options.io_uid, options.io_gid
    return CreateContainer(
        container_id=request.id,
        bundle=request.bundle,
        rootfs=tuple(
            RootfsMount(mount.type, mount.source, mount.target, tuple(mount.options))
            for mount in request.rootfs
        ),
        stdio=StdioPaths(request.stdin, request.stdout, request.stderr, request.terminal),
        checkpoint=request.checkpoint,
        io_uid=io_uid,
        io_gid=io_gid,
    )


def exec_request(request: task_v2_pb2.ExecProcessRequest) -> ExecProcess:
    """Take Task.Exec apart.

    Raises:
        InvalidArgument: for an empty exec id or a spec that is no OCI process.
    """
    if not request.exec_id:
        raise InvalidArgument(f"exec in {request.id}: the exec id is empty")
    what = f"the process of exec {request.exec_id}"
    _check_type(request.spec, PROCESS_TYPE, what)
    process = load_process(request.spec.value, what)
    process["terminal"] = request.terminal
    return ExecProcess(
        container_id=request.id,
        exec_id=request.exec_id,
        process=process,
        stdio=StdioPaths(request.stdin, request.stdout, request.stderr, request.terminal),
    )


def resources(value: AnyMessage) -> dict[str, Any]:
    """Take the resources of Task.Update apart.

    Raises:
        InvalidArgument: when they are not OCI LinuxResources.
    """
    _check_type(value, RESOURCES_TYPE, "resources")
    return load_resources(value.value, "resources")


def state_response(process: Process, state: ProcessState, bundle: str) -> task_v2_pb2.StateResponse:
    """Say where a process stands."""
    response = task_v2_pb2.StateResponse(
        id=process.guest_id,
        bundle=bundle,
        pid=process.pid,
        status=STATUS[state],
        stdin=process.paths.stdin,
        stdout=process.paths.stdout,
        stderr=process.paths.stderr,
        terminal=process.paths.terminal,
        exec_id=process.exec_id,
    )
    if process.exit is not None:
        response.exit_status = process.exit.status
        response.exited_at.CopyFrom(timestamp(process.exit.at_ns))
    return response


def delete_response(pid: int, how: Exit) -> task_v2_pb2.DeleteResponse:
    """Say how what is now deleted ended."""
    return task_v2_pb2.DeleteResponse(
        pid=pid, exit_status=how.status, exited_at=timestamp(how.at_ns)
    )


def wait_response(how: Exit) -> task_v2_pb2.WaitResponse:
    """Say how a process ended."""
    return task_v2_pb2.WaitResponse(exit_status=how.status, exited_at=timestamp(how.at_ns))


def event(happened: events.Event) -> tuple[str, Message]:
    """Give an event its topic and wire form."""
    match happened:
        case events.TaskCreate():
            return "/tasks/create", events_pb2.TaskCreate(
                container_id=happened.container_id,
                bundle=happened.bundle,
                rootfs=[
                    types_pb2.Mount(
                        type=mount.type,
                        source=mount.source,
                        target=mount.target,
                        options=mount.options,
                    )
                    for mount in happened.rootfs
                ],
                io=events_pb2.TaskIO(
                    stdin=happened.stdio.stdin,
                    stdout=happened.stdio.stdout,
                    stderr=happened.stdio.stderr,
                    terminal=happened.stdio.terminal,
                ),
                pid=happened.pid,
            )
        case events.TaskStart():
            return "/tasks/start", events_pb2.TaskStart(
                container_id=happened.container_id, pid=happened.pid
            )
        case events.TaskExit():
            return "/tasks/exit", events_pb2.TaskExit(
                container_id=happened.container_id,
                id=happened.process_id,
                pid=happened.pid,
                exit_status=happened.exit_status,
                exited_at=timestamp(happened.exited_at_ns),
            )
        case events.TaskDelete():
            return "/tasks/delete", events_pb2.TaskDelete(
                container_id=happened.container_id,
                pid=happened.pid,
                exit_status=happened.exit_status,
                exited_at=timestamp(happened.exited_at_ns),
                id=happened.container_id,
            )
        case events.TaskOOM():
            return "/tasks/oom", events_pb2.TaskOOM(container_id=happened.container_id)
        case events.TaskExecAdded():
            return "/tasks/exec-added", events_pb2.TaskExecAdded(
                container_id=happened.container_id, exec_id=happened.exec_id
            )
        case events.TaskExecStarted():
            return "/tasks/exec-started", events_pb2.TaskExecStarted(
                container_id=happened.container_id,
                exec_id=happened.exec_id,
                pid=happened.pid,
            )
        case events.TaskPaused():
            return "/tasks/paused", events_pb2.TaskPaused(container_id=happened.container_id)
        case events.TaskResumed():
            return "/tasks/resumed", events_pb2.TaskResumed(container_id=happened.container_id)


def metrics(stats: agent_pb2.StatsContainerResponse) -> Message:
    """Give counters the message clients look for on this host's cgroup mode.

    containerd's CRI and metrics plugins drop the family that is not the host's.
    """
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return cgroup_v2(stats)
    return cgroup_v1(stats)
