"""What can go wrong in the shim, each kind with the gRPC status the client sees.

``translate.py`` is the only place that turns these into wire statuses. Texts say
what failed, on what, and where to look; nothing matches on them.
"""

from __future__ import annotations

from shim.ttrpc import status

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs the shim's start path milliseconds
    from typing import ClassVar


class KatapyError(Exception):
    """Base of every error the shim raises on purpose."""

    code: ClassVar[int] = status.UNKNOWN


class InvalidArgument(KatapyError):
    """The request or a file it names is malformed."""

    code = status.INVALID_ARGUMENT


class ConfigError(InvalidArgument):
    """A configuration value is wrong; the text names file, key and what is accepted."""


class NotFound(KatapyError):
    """The container, exec, file or device is not there (any more)."""

    code = status.NOT_FOUND


class AlreadyExists(KatapyError):
    """The id is taken."""

    code = status.ALREADY_EXISTS


class FailedPrecondition(KatapyError):
    """The call is not legal in the object's present state."""

    code = status.FAILED_PRECONDITION


class Unimplemented(KatapyError):
    """The feature does not exist here."""

    code = status.UNIMPLEMENTED


class DeadlineExceeded(KatapyError):
    """An external wait ran into its deadline."""

    code = status.DEADLINE_EXCEEDED


class ResourceExhausted(KatapyError):
    """Memory, slots or sizes have run out."""

    code = status.RESOURCE_EXHAUSTED


class Unavailable(KatapyError):
    """The VM or its agent is gone."""

    code = status.UNAVAILABLE


class Internal(KatapyError):
    """An environment failure that the client cannot mend."""

    code = status.INTERNAL
