"""What can go wrong when running a VM, one class a kind.

The shim maps these to its own errors. Texts say what failed, on what, and where to
look; nothing matches on them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.events import ExitReason


class VmmError(Exception):
    """Base of every error a backend raises on purpose."""


class Unsupported(VmmError):
    """The backend's capability value says that it can't do this.

    Args:
        feature: the capability, by its field name.
        detail: what would turn it on, if anything does.
        vmm: name and version of the VMM.
    """

    def __init__(self, feature: str, detail: str = "", vmm: str = "") -> None:
        self.feature = feature
        text = f"{vmm} does not support {feature}" if vmm else f"not supported here: {feature}"
        super().__init__(text + (f" ({detail})" if detail else ""))


class InvalidState(VmmError):
    """The call is not legal in the VM's present state."""


class InvalidConfig(VmmError):
    """The specification contradicts itself, the host or the VMM's version."""


class NotFound(VmmError):
    """No such device."""


class Conflict(VmmError):
    """The id is taken, or the device is busy or being removed."""


class LimitExceeded(VmmError):
    """No slot, port or memory range is left."""


class GuestTimeout(VmmError):
    """The guest did not do its part before the deadline."""


class ControlTimeout(VmmError):
    """The VMM did not answer on its control channel before the deadline."""


class ChannelClosed(VmmError):
    """The VMM or a helper closed the way to the guest."""


class VmmGone(VmmError):
    """The VMM process ended; ``reason`` says why, with its last words."""

    def __init__(self, message: str, reason: ExitReason | None = None) -> None:
        self.reason = reason
        super().__init__(f"{message}: {reason}" if reason is not None else message)


class ApiError(VmmError):
    """The VMM refused a command.

    Args:
        command: the command or path that was refused.
        kind: the VMM's own error class.
        description: the VMM's own text.
        arguments: what was sent with the command.
    """

    def __init__(
        self,
        command: str,
        kind: str,
        description: str,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        self.command = command
        self.kind = kind
        self.description = description
        target = f" {dict(arguments)}" if arguments else ""
        super().__init__(f"{command} refused: {description} ({kind}){target}")
