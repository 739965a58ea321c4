"""The life of a process and of a sandbox as enums with their transition tables.

A process is a container's init or an exec. The table is containerd's (Task API,
``containerd.v1.types.Status``): Pause and Resume move only between RUNNING and
PAUSED, and everything can stop.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Generic, TypeVar

from shim.errors import FailedPrecondition


class ProcessState(enum.Enum):
    """Where a container's init or an exec stands."""

    NEW = "new"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class SandboxState(enum.Enum):
    """Where the pod's VM stands."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


PROCESS_TRANSITIONS: Mapping[ProcessState, frozenset[ProcessState]] = {
    ProcessState.NEW: frozenset({ProcessState.CREATED, ProcessState.STOPPED}),
    ProcessState.CREATED: frozenset({ProcessState.RUNNING, ProcessState.STOPPED}),
    ProcessState.RUNNING: frozenset({ProcessState.PAUSED, ProcessState.STOPPED}),
    ProcessState.PAUSED: frozenset({ProcessState.RUNNING, ProcessState.STOPPED}),
    ProcessState.STOPPED: frozenset(),
}

SANDBOX_TRANSITIONS: Mapping[SandboxState, frozenset[SandboxState]] = {
    SandboxState.NEW: frozenset({SandboxState.STARTING, SandboxState.STOPPED}),
    # A failed start goes back to NEW, so that a client may try again.
    SandboxState.STARTING: frozenset(
        {SandboxState.RUNNING, SandboxState.NEW, SandboxState.STOPPED}
    ),
    SandboxState.RUNNING: frozenset({SandboxState.STOPPED}),
    SandboxState.STOPPED: frozenset(),
}

S = TypeVar("S", bound=enum.Enum)


class Lifecycle(Generic[S]):
    """A state and the table of where it may go.

    Args:
        what: the object's name in error texts, such as ``container c1``.
        initial: the first state.
        transitions: for each state, the states that may follow.
    """

    def __init__(self, what: str, initial: S, transitions: Mapping[S, frozenset[S]]) -> None:
        self._what = what
        self._state = initial
        self._transitions = transitions

    @property
    def state(self) -> S:
        """The present state."""
        return self._state

    def require(self, action: str, *allowed: S) -> None:
        """Check that an action is legal now.

        Raises:
            FailedPrecondition: naming the actual and the required states.
        """
        if self._state not in allowed:
            wanted = " or ".join(str(state.value) for state in allowed)
            raise FailedPrecondition(
                f"cannot {action} {self._what}: it is {self._state.value}, not {wanted}"
            )

    def move(self, to: S) -> None:
        """Enter a state.

        Raises:
            FailedPrecondition: when the table has no such transition.
        """
        if to not in self._transitions[self._state]:
            raise FailedPrecondition(
                f"{self._what} cannot go from {self._state.value} to {to.value}"
            )
        self._state = to
