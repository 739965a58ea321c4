"""Why a QEMU process ended, from what it said and how it died. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.events import PANIC_LINE, ExitCause, ExitReason

if TYPE_CHECKING:
    from collections.abc import Sequence

_CAUSES = {
    "guest-panic": ExitCause.GUEST_PANIC,
    "guest-reset": ExitCause.GUEST_RESET,
    "guest-shutdown": ExitCause.GUEST_SHUTDOWN,
    "host-qmp-quit": ExitCause.HOST_QUIT,
    "host-qmp-system-reset": ExitCause.HOST_QUIT,
    "host-signal": ExitCause.HOST_SIGNAL,
    "host-error": ExitCause.VMM_ERROR,
}


def exit_reason(
    *,
    returncode: int | None,
    shutdown_cause: str,
    panicked: bool,
    stderr: Sequence[str],
    console: Sequence[str],
) -> ExitReason:
    """Return why a VM ended.

    Args:
        returncode: exit code, negative signal number, or None when it is unknown.
        shutdown_cause: ``reason`` of QEMU's last SHUTDOWN event; empty without one.
        panicked: whether QEMU reported a guest panic.
        stderr: last lines QEMU wrote.
        console: last lines of the guest's console.
    """
    killed = returncode is not None and returncode < 0
    # A guest without the panic device's driver only resets after its panic.
    reset = shutdown_cause == "guest-reset"
    if panicked or (reset and any(PANIC_LINE in line for line in console)):
        cause = ExitCause.GUEST_PANIC
    elif shutdown_cause in _CAUSES:
        cause = _CAUSES[shutdown_cause]
    elif killed:
        cause = ExitCause.HOST_SIGNAL
    elif returncode is None:
        cause = ExitCause.UNKNOWN
    else:
        cause = ExitCause.VMM_ERROR
    return ExitReason(
        cause,
        code=None if killed else returncode,
        signal=-returncode if killed and returncode is not None else None,
        stderr=tuple(stderr),
        console=tuple(console),
    )
