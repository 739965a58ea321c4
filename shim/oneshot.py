"""One blocking ttrpc call at a time, for ``delete``, which has no event loop.

Standard library only.

Source: ttrpc PROTOCOL.md.
"""

from __future__ import annotations

import socket
import time

from shim.ttrpc import framing, messages
from shim.ttrpc.status import DEADLINE_EXCEEDED, OK, UNAVAILABLE, TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_READ_SIZE = 65536


class Connection:
    """A connection to a ttrpc server on a unix socket; use as a context manager.

    Args:
        path: the socket.
        timeout: seconds for everything done with it together.

    Raises:
        TtrpcError: UNAVAILABLE when nobody answers there.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._path = path
        self._next_stream = 1
        self._decoder = framing.FrameDecoder()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(self._left())
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise TtrpcError(UNAVAILABLE, f"cannot connect to {path}: {error}") from error

    def call(self, service: str, method: str, payload: bytes) -> bytes:
        """Call a unary method.

        Returns:
            The response's payload.

        Raises:
            TtrpcError: the status the server sent; DEADLINE_EXCEEDED when the time
                is over; UNAVAILABLE when the connection ends.
        """
        left = self._left()
        stream_id = self._next_stream
        self._next_stream += 2
        request = messages.encode_request(service, method, payload, timeout_ns=int(left * 1e9))
        try:
            self._socket.settimeout(left)
            self._socket.sendall(framing.encode_frame(stream_id, framing.REQUEST, 0, request))
            while True:
                self._socket.settimeout(self._left())
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise TtrpcError(UNAVAILABLE, f"{self._path} closed the connection")
                for found_id, kind, _, answer in self._decoder.feed(data):
                    if found_id == stream_id and kind == framing.RESPONSE:
                        return _payload(answer, method)
        except TimeoutError as error:
            raise TtrpcError(
                DEADLINE_EXCEEDED, f"{method} at {self._path} was not answered in time"
            ) from error
        except OSError as error:
            raise TtrpcError(UNAVAILABLE, f"{method} at {self._path}: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TtrpcError(DEADLINE_EXCEEDED, f"no time left for {self._path}")
        return left


def _payload(answer: bytes | None, method: str) -> bytes:
    if answer is None:
        raise TtrpcError(UNAVAILABLE, f"{method}: the answer is too long")
    response = messages.decode_response(answer)
    if response.code != OK:
        raise TtrpcError(response.code, response.message)
    return bytes(response.payload)
