"""QMP on the wire, without I/O: bytes in, messages out.

Each message is one JSON object on a line of its own. The server ends lines with CR LF.
A line has no maximum length (the reply to ``query-qmp-schema`` has over 200 KB); ours
keeps a QEMU that its guest has taken over from filling our memory.

Source: QEMU docs/interop/qmp-spec.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

LINE_MAX = 16 << 20


class QmpProtocolError(Exception):
    """The peer sent something that is not QMP."""


@dataclass(frozen=True)
class Greeting:
    """First message of the server. Says nothing about whether the VM will come up."""

    version: tuple[int, int, int]
    package: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """Success of the command with this id."""

    id: Any
    value: Any


@dataclass(frozen=True)
class Failure:
    """Refusal of the command with this id; ``id`` is None when it could not be parsed."""

    id: Any
    kind: str
    description: str


@dataclass(frozen=True)
class QmpEvent:
    """Something happened in the VMM.

    Args:
        name: event name, in capitals.
        data: its members; may be empty.
        timestamp: host wall clock in seconds.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    timestamp: float = 0.0


Message = Greeting | Reply | Failure | QmpEvent


def encode_command(
    name: str,
    arguments: dict[str, Any] | None = None,
    command_id: Any = None,
    *,
    out_of_band: bool = False,
) -> bytes:
    """Return one command as a line.

    Args:
        name: the command.
        arguments: its arguments; None leaves the member out.
        command_id: any JSON value; the reply carries it again.
        out_of_band: run ahead of commands that are still in progress.
    """
    message: dict[str, Any] = {"exec-oob" if out_of_band else "execute": name}
    if arguments is not None:
        message["arguments"] = arguments
    if command_id is not None:
        message["id"] = command_id
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class QmpDecoder:
    """Cuts a byte stream into messages; feed it pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0

    def feed(self, data: bytes) -> list[Message]:
        """Take received bytes and return the messages they complete.

        Raises:
            QmpProtocolError: a line is not a QMP message, or is longer than LINE_MAX.
        """
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._scanned))) >= 0:
            line = bytes(self._buffer[start:end]).strip()
            start = end + 1
            if line:
                messages.append(_parse(line))
        del self._buffer[:start]
        self._scanned = len(self._buffer)
        if self._scanned > LINE_MAX:
            raise QmpProtocolError(f"a line is longer than {LINE_MAX} bytes")
        return messages


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise QmpProtocolError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise QmpProtocolError(f"not an object: {line[:80]!r}")
    try:
        if "return" in message:
            return Reply(message.get("id"), message["return"])
        if "error" in message:
            refusal = message["error"]
            return Failure(message.get("id"), str(refusal["class"]), str(refusal["desc"]))
        if "event" in message:
            stamp = message.get("timestamp", {})
            seconds = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
            return QmpEvent(str(message["event"]), message.get("data", {}), seconds)
        if "QMP" in message:
            return _greeting(message["QMP"])
    except (KeyError, TypeError, AttributeError) as error:
        raise QmpProtocolError(f"malformed message: {line[:80]!r}") from error
    raise QmpProtocolError(f"unknown message: {line[:80]!r}")


def _greeting(value: dict[str, Any]) -> Greeting:
    version = value["version"]["qemu"]
    return Greeting(
        (int(version["major"]), int(version["minor"]), int(version["micro"])),
        str(value["version"].get("package", "")),
        tuple(str(name) for name in value.get("capabilities", ())),
    )
