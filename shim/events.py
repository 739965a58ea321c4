"""What happens to a task, as plain values; ``translate`` gives them their wire form.

Source: containerd ``api/events/task.proto``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shim.requests import RootfsMount, StdioPaths


@dataclass(frozen=True, slots=True)
class TaskCreate:
    """A container was created."""

    container_id: str
    bundle: str
    rootfs: tuple[RootfsMount, ...]
    stdio: StdioPaths
    pid: int


@dataclass(frozen=True, slots=True)
class TaskStart:
    """A container's init runs."""

    container_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class TaskExit:
    """A process ended; ``process_id`` is the container's id for init, else the exec's."""

    container_id: str
    process_id: str
    pid: int
    exit_status: int
    exited_at_ns: int


@dataclass(frozen=True, slots=True)
class TaskDelete:
    """A container is gone from the shim."""

    container_id: str
    pid: int
    exit_status: int
    exited_at_ns: int


@dataclass(frozen=True, slots=True)
class TaskOOM:
    """The guest kernel's OOM killer struck in the container's cgroup."""

    container_id: str


@dataclass(frozen=True, slots=True)
class TaskExecAdded:
    """An exec was registered."""

    container_id: str
    exec_id: str


@dataclass(frozen=True, slots=True)
class TaskExecStarted:
    """An exec runs."""

    container_id: str
    exec_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class TaskPaused:
    """A container was frozen."""

    container_id: str


@dataclass(frozen=True, slots=True)
class TaskResumed:
    """A container was thawed."""

    container_id: str


Event = (
    TaskCreate
    | TaskStart
    | TaskExit
    | TaskDelete
    | TaskOOM
    | TaskExecAdded
    | TaskExecStarted
    | TaskPaused
    | TaskResumed
)
Publish = Callable[[Event], None]
