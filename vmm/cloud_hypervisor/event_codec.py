"""Cloud Hypervisor's event stream: JSON objects over many lines, a blank line after each.

The pipe is written without waiting, so an event may be cut off when it is full: what can't
be read is skipped up to the next object. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_EVENT_MAX = 64 << 10


@dataclass(frozen=True)
class VmmEvent:
    """One event.

    Args:
        source: the part it is about: ``vmm``, ``vm``, ``guest``, ``virtio-device``.
        name: what happened.
        properties: its details, such as ``id``.
    """

    source: str
    name: str
    properties: Mapping[str, str]


class EventDecoder:
    """Decodes the stream."""

    def __init__(self) -> None:
        self._buffer = b""
        self.skipped = 0

    def feed(self, data: bytes) -> list[VmmEvent]:
        """Take bytes; return the events that are complete."""
        *texts, self._buffer = (self._buffer + data).split(b"\n\n")
        if len(self._buffer) > _EVENT_MAX:
            self._buffer = b""
            self.skipped += 1
        return [event for text in texts if text.strip() for event in self._decode(text)]

    def _decode(self, text: bytes) -> Iterator[VmmEvent]:
        # After a cut the next object begins on a line of its own.
        start = text.rfind(b"\n{\n") + 1 if not text.lstrip().startswith(b"{") else 0
        for candidate in dict.fromkeys((text[start:], text[text.rfind(b"\n{\n") + 1 :])):
            event = _event(candidate)
            if event is not None:
                yield event
                return
        self.skipped += 1


def _event(text: bytes) -> VmmEvent | None:
    try:
        value = json.loads(text)
        properties = value.get("properties") or {}
        return VmmEvent(
            str(value["source"]),
            str(value["event"]),
            {str(key): str(item) for key, item in properties.items()},
        )
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
