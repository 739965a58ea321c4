"""A blocking ttrpc client of a shim, with as little of its own as can be: it takes times.

Source: ttrpc PROTOCOL.md; containerd runtime v2 README, bootstrap parameters.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from protos.containerd.bootstrap_pb2 import BootstrapResult
from shim.errors import DeadlineExceeded, Internal, Unavailable
from shim.ttrpc.framing import REQUEST, FrameDecoder, encode_frame
from shim.ttrpc.messages import decode_response, encode_request

_READ = 1 << 16


class Message(Protocol):
    """A protobuf message to send."""

    def SerializeToString(self) -> bytes:
        """Encode it."""
        ...


class ShimClient:
    """One connection to a shim's Task service.

    Args:
        answer: what ``start`` printed, or the content of ``address`` or
            ``bootstrap.json`` in a bundle.
        timeout: seconds a call may take.
    """

    def __init__(self, answer: str, timeout: float = 60.0) -> None:
        address, version = answer.strip(), 2
        if address.startswith("{"):
            document = json.loads(address)
            address, version = document["address"], document.get("version", 2)
        elif not address.startswith(("unix:", "/")):
            # A message, from runc's shim of containerd 2.3; all of its bytes are text.
            result = BootstrapResult.FromString(answer.encode())
            address, version = result.address, result.version
        self._service = f"containerd.task.v{version}.Task"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._decoder = FrameDecoder()
        self._next = 1
        try:
            self._socket.connect(address.removeprefix("unix://"))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"shim at {address}: {error.strerror}") from error

    @classmethod
    def of_bundle(cls, bundle: Path, timeout: float = 60.0) -> Self:
        """Connect to the shim of a running task."""
        for name in ("bootstrap.json", "address"):
            if (bundle / name).exists():
                return cls((bundle / name).read_text(), timeout)
        raise Unavailable(f"{bundle} names no shim")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def call(self, method: str, message: Message) -> bytes:
        """Call a method and return its encoded answer.

        Raises:
            Internal: the shim answered with an error.
            DeadlineExceeded, Unavailable: it did not answer.
        """
        self._send(encode_request(self._service, method, message.SerializeToString()), 1)
        while True:
            for _, _, _, payload in self._decoder.feed(self._receive()):
                answer = decode_response(payload or b"")
                if answer.code:
                    raise Internal(f"{method}: {answer.message}")
                return answer.payload

    def rate(self, method: str, message: Message, depth: int, seconds: float) -> float:
        """Call for some seconds with ``depth`` calls in flight; returns calls per second."""
        request = encode_request(self._service, method, message.SerializeToString())
        begin = time.perf_counter()
        count = 0
        while (elapsed := time.perf_counter() - begin) < seconds:
            self._send(request, depth)
            missing = depth
            while missing:
                missing -= len(self._decoder.feed(self._receive()))
            count += depth
        return count / elapsed

    def _send(self, request: bytes, times: int) -> None:
        ids = range(self._next, self._next + 2 * times, 2)
        self._next += 2 * times
        try:
            self._socket.sendall(b"".join(encode_frame(i, REQUEST, 0, request) for i in ids))
        except OSError as error:
            raise Unavailable(f"the shim is gone: {error}") from error

    def _receive(self) -> bytes:
        try:
            data = self._socket.recv(_READ)
        except TimeoutError:
            raise DeadlineExceeded("the shim does not answer") from None
        except OSError as error:
            raise Unavailable(f"the shim is gone: {error}") from error
        if not data:
            raise Unavailable("the shim closed the connection")
        return data
