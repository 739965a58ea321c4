"""Status codes of ttrpc, which are those of gRPC, and the error that carries one.

Plain ints instead of an Enum: the guest agent imports this module on its start
path, where every import costs twelve-fold under emulation.

Source: google.rpc.Code; ttrpc PROTOCOL.md.
"""

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16


class TtrpcError(Exception):
    """A call ended with a status other than OK.

    Raised by clients for a status the peer sent, and by handlers to send one.

    Args:
        code: one of the constants of this module.
        message: text for the caller, one line.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"TtrpcError({self.code}, {self.message!r})"
