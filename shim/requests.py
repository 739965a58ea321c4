"""What a client asks of a sandbox, as plain values free of any wire format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StdioPaths:
    """Where a process's streams go: FIFO paths, ``file://`` or ``binary://`` URIs, or empty."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class RootfsMount:
    """One mount of the list a snapshotter gives for a root filesystem."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateContainer:
    """Task.Create without its wire clothes."""

    container_id: str
    bundle: str
    rootfs: tuple[RootfsMount, ...] = ()
    stdio: StdioPaths = field(default_factory=StdioPaths)
    checkpoint: str = ""
    io_uid: int = 0
    io_gid: int = 0


@dataclass(frozen=True, slots=True)
class ExecProcess:
    """Task.Exec: ``process`` is the OCI process object."""

    container_id: str
    exec_id: str
    process: dict[str, Any]
    stdio: StdioPaths = field(default_factory=StdioPaths)
