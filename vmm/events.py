"""What a VM reports: events while it runs, and the reason why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Linux prints this on the console when it panics (kernel/panic.c).
PANIC_LINE = "Kernel panic - not syncing"


class VmState(Enum):
    """Where a VM is in its life; calls say which states they are legal in."""

    NEW = "new"  # nothing exists yet
    SPAWNED = "spawned"  # the VMM answers, the guest has not run
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"  # the VMM process is gone


class ExitCause(Enum):
    """Who or what ended the VM."""

    GUEST_SHUTDOWN = "the guest powered off"
    GUEST_RESET = "the guest reset"
    GUEST_PANIC = "the guest kernel panicked"
    HOST_QUIT = "the host asked the VMM to quit"
    HOST_SIGNAL = "the VMM was ended by a signal"
    VMM_ERROR = "the VMM failed"
    UNKNOWN = "the VMM process is gone, its exit status was taken by someone else"


@dataclass(frozen=True)
class ExitReason:
    """Why a VM ended.

    Args:
        cause: who ended it.
        code: exit code of the VMM process; None when a signal ended it.
        signal: number of the signal that ended the VMM process, or None.
        stderr: last lines the VMM wrote.
        console: last lines of the guest's console.
    """

    cause: ExitCause
    code: int | None = None
    signal: int | None = None
    stderr: tuple[str, ...] = ()
    console: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = f"signal {self.signal}" if self.signal is not None else f"exit code {self.code}"
        text = f"{self.cause.value} ({how})"
        if self.stderr:
            text += "; VMM said: " + " | ".join(self.stderr[-5:])
        if self.console:
            text += "; last console lines: " + " | ".join(telling_lines(self.console))
        return text


def telling_lines(console: Sequence[str], count: int = 5) -> Sequence[str]:
    """Return the console lines that explain most: from a panic on, else the last ones."""
    for index, line in enumerate(console):
        if PANIC_LINE in line:
            return console[max(0, index - count + 2) : index + 2]
    return console[-count:]


@dataclass(frozen=True)
class StateChanged:
    """The VM went to another state, asked or by itself."""

    state: VmState


@dataclass(frozen=True)
class DeviceRemoved:
    """The guest let go of a device and the VMM removed it."""

    id: str


@dataclass(frozen=True)
class DeviceRemoveFailed:
    """The guest refused to let go of a device."""

    id: str


@dataclass(frozen=True)
class MemoryChanged:
    """The guest plugged or unplugged hot-pluggable memory.

    Args:
        hot_bytes: hot-pluggable memory in use now.
    """

    hot_bytes: int


@dataclass(frozen=True)
class BalloonChanged:
    """The balloon moved; ``actual_bytes`` is what the guest has now."""

    actual_bytes: int


@dataclass(frozen=True)
class GuestPanicked:
    """The guest kernel panicked."""


@dataclass(frozen=True)
class GuestReset:
    """The guest asked for a reset."""


@dataclass(frozen=True)
class GuestShutdown:
    """The guest powered off."""


@dataclass(frozen=True)
class ConsoleLine:
    """The guest wrote a line on its console."""

    line: str


@dataclass(frozen=True)
class VmmLog:
    """The VMM wrote a line on its stderr."""

    line: str


@dataclass(frozen=True)
class Exited:
    """The VMM process ended. Always the last event, and never dropped."""

    reason: ExitReason


Event = (
    StateChanged
    | DeviceRemoved
    | DeviceRemoveFailed
    | MemoryChanged
    | BalloonChanged
    | GuestPanicked
    | GuestReset
    | GuestShutdown
    | ConsoleLine
    | VmmLog
    | Exited
)
