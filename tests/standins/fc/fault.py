"""What Firecracker refuses."""

from __future__ import annotations


class Fault(Exception):
    """Becomes a ``fault_message``.

    Args:
        text: the message.
        status: of the answer.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


POST_BOOT = "The requested operation is not supported after starting the microVM."
PRE_BOOT = "The requested operation is not supported before starting the microVM."
