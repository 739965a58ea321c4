"""One HTTP request over a unix socket, for those who ask a shim."""

from __future__ import annotations

import trio

from shim.errors import Unavailable
from vmm.http1 import HttpError, Response, ResponseDecoder, encode_request

_RECEIVE = 65536


async def ask(path: str, method: str, target: str, body: bytes | None = None) -> Response:
    """Send a request on a connection of its own and return the response.

    Set a deadline around it.

    Args:
        path: the socket.
        method: HTTP method.
        target: absolute path, and query.
        body: content; None sends none.

    Raises:
        Unavailable: nobody answers there, or not with HTTP.
    """
    what = f"{method} {target} at {path}"
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise Unavailable(f"{what}: {error.strerror or error}") from error
    async with stream:
        decoder = ResponseDecoder()
        try:
            await stream.send_all(encode_request(method, target, body))
            while data := await stream.receive_some(_RECEIVE):
                if (response := decoder.feed(bytes(data))) is not None:
                    return response
            return decoder.end()
        except (HttpError, trio.BrokenResourceError) as error:
            raise Unavailable(f"{what}: {error}") from error
