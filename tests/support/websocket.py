"""Just enough of a WebSocket client to stream with a CRI's exec, attach and port-forward.

Source: RFC 6455; the channel protocol of k8s.io/apimachinery's wsstream (v4): each binary
message begins with the number of its channel.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import time
from urllib.parse import urlsplit

from tests.support.node_network import NetworkNamespace

PROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


class Stream:
    """One exec, attach or port-forward under way.

    Params: ``url`` is what the CRI answered; ``namespace`` is where its server listens.
    """

    def __init__(self, url: str, namespace: NetworkNamespace, *, timeout: float) -> None:
        parts = urlsplit(url)
        self._deadline = time.monotonic() + timeout
        self._socket = namespace.connect(parts.hostname or "", parts.port or 80, timeout=timeout)
        self.received: dict[int, bytes] = {}
        self._buffer = b""
        self._ended = False
        key = base64.b64encode(os.urandom(16)).decode()
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        head = (
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )
        self._socket.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._read()
        answer, _, self._buffer = answer.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101"), answer.decode(errors="replace")

    def write(self, data: bytes) -> None:
        """Send bytes to the process's standard input."""
        self._send(_BINARY, bytes([STDIN]) + data)

    def resize(self, width: int, height: int) -> None:
        """Tell a terminal's new size."""
        text = json.dumps({"Width": width, "Height": height}).encode()
        self._send(_BINARY, bytes([RESIZE]) + text)

    def read_until(self, text: bytes, channel: int = STDOUT) -> bytes:
        """Read on until a channel has said ``text``; returns all of it so far.

        Raises: AssertionError at the deadline or the stream's end.
        """
        while text not in self.received.get(channel, b""):
            assert self._next(), f"the stream ended; received {self.received}"
        return self.received[channel]

    def finish(self) -> int:
        """Read to the end; returns the exit code that the error channel tells."""
        while self._next():
            pass
        status = json.loads(self.received.get(ERROR) or b'{"status": "Success"}')
        if status["status"] == "Success":
            return 0
        causes = status.get("details", {}).get("causes", [])
        codes = [int(c["message"]) for c in causes if c.get("reason") == "ExitCode"]
        assert codes, status
        return codes[0]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave, whatever is still to come."""
        self._socket.close()

    def _next(self) -> bool:
        """Take one message in; False at the end."""
        if self._ended:
            return False
        try:
            head = self._take(2)
        except EOFError:
            self._ended = True
            return False
        opcode, size = head[0] & 15, head[1] & 127
        if size == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        payload = self._take(size)
        if opcode == _PING:
            self._send(_PONG, payload)
        elif opcode == _CLOSE:
            self._ended = True
            return False
        elif opcode == _BINARY and payload:
            channel = payload[0]
            self.received[channel] = self.received.get(channel, b"") + payload[1:]
        return True

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(head + mask + masked)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += self._read()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _read(self) -> bytes:
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.01))
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise AssertionError(f"the stream stalls; received {self.received}") from None
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        return data
