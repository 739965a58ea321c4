"""A VMM's HTTP API over its unix socket: JSON in and out, deadlines, descriptors.

A connection carries one request at a time and is kept for the next one; a request that
passes descriptors has a connection of its own, so that the VMM can't take them for
those of a neighbour.
"""

from __future__ import annotations

import array
import json
import socket
from typing import TYPE_CHECKING, Any

import trio

from vmm.channel import connect_unix
from vmm.errors import ApiError, ChannelClosed, Conflict, ControlTimeout, NotFound, VmmError
from vmm.http1 import HttpError, Response, ResponseDecoder, encode_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_RECEIVE = 65536
_TEXT_MAX = 2000


class HttpClient:
    """The API of one VMM.

    Args:
        path: its socket.
        vmm: what to call it in errors.
        timeout: seconds a request may take, unless it says otherwise.
        prefix: what every target begins with.
    """

    def __init__(self, path: Path, *, vmm: str, timeout: float, prefix: str = "") -> None:
        self._path = path
        self._vmm = vmm
        self._timeout = timeout
        self._prefix = prefix
        self._idle: trio.SocketStream | None = None
        self._lock = trio.Lock()

    async def request(
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Any:
        """Send a request and return the decoded JSON answer, None when it is empty.

        Args:
            method: HTTP method.
            target: path, without the prefix.
            body: JSON object to send; None sends none.
            fds: descriptors for the VMM to get copies of.
            timeout: seconds until an answer must be there.

        Raises:
            NotFound, Conflict, ApiError: the VMM refused it.
            ChannelClosed: the VMM closed the connection, or does not listen.
            ControlTimeout: no answer in time.
            VmmError: the answer is no HTTP.
        """
        seconds = self._timeout if timeout is None else timeout
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        data = encode_request(method, self._prefix + target, content)
        what = f"{self._vmm} {method} {target}"
        with trio.move_on_after(seconds):
            if fds:
                response = await self._on_new_connection(what, data, fds)
            else:
                async with self._lock:
                    response = await self._on_kept_connection(what, data)
            return _result(what, response, body)
        raise ControlTimeout(f"{what}: no answer within {seconds:g} s")

    async def aclose(self) -> None:
        """Close the connection that is kept."""
        if self._idle is not None:
            stream, self._idle = self._idle, None
            await trio.aclose_forcefully(stream)

    async def _on_new_connection(self, what: str, data: bytes, fds: Sequence[int]) -> Response:
        stream = await connect_unix(self._path)
        try:
            return await _exchange(what, stream, data, fds)
        finally:
            await trio.aclose_forcefully(stream)

    async def _on_kept_connection(self, what: str, data: bytes) -> Response:
        stream, self._idle = self._idle, None
        if stream is not None and not _is_usable(stream):
            await trio.aclose_forcefully(stream)
            stream = None
        if stream is None:
            stream = await connect_unix(self._path)
        keep = False
        try:
            response = await _exchange(what, stream, data, ())
            keep = response.keep_alive
        finally:
            # A request that was given up would have its answer taken for the next one's.
            if keep:
                self._idle = stream
            else:
                await trio.aclose_forcefully(stream)
        return response


def _is_usable(stream: trio.SocketStream) -> bool:
    """Whether an idle connection is neither closed nor has unasked bytes in it."""
    fd = stream.socket.fileno()
    with socket.socket(fileno=fd) as peek:
        try:
            peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            peek.detach()
    return False


async def _exchange(
    what: str, stream: trio.SocketStream, data: bytes, fds: Sequence[int]
) -> Response:
    decoder = ResponseDecoder()
    try:
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                data = data[await stream.socket.sendmsg([data], [rights]) :]
            await stream.send_all(data)
        except (trio.BrokenResourceError, BrokenPipeError, ConnectionResetError):
            # Refused before all of it was read: the answer says why, if there is one.
            pass
        while True:
            received = await stream.receive_some(_RECEIVE)
            if not received:
                if not decoder.started:
                    raise ChannelClosed(f"{what}: the VMM closed the connection")
                return decoder.end()
            if (response := decoder.feed(bytes(received))) is not None:
                return response
    except trio.BrokenResourceError:
        raise ChannelClosed(f"{what}: the VMM closed the connection") from None
    except HttpError as error:
        raise VmmError(f"{what}: not an HTTP answer: {error}") from error


def _result(what: str, response: Response, body: Mapping[str, object] | None) -> Any:
    if 200 <= response.status < 300:
        if not response.body:
            return None
        try:
            return json.loads(response.body)
        except ValueError as error:
            raise VmmError(f"{what}: the answer is no JSON: {error}") from error
    said = error_text(response.body)
    refusal = f"{what} refused: {said} (status {response.status})"
    if response.status == 404:
        raise NotFound(refusal)
    if response.status in (409, 429):
        raise Conflict(refusal)
    raise ApiError(what, f"status {response.status}", said, body)


def error_text(body: bytes) -> str:
    """Return what an error body says, whichever of the VMMs' forms it has.

    Firecracker answers ``{"fault_message": …}``, Cloud Hypervisor a list of texts from
    the outermost cause to the innermost; what fails below the API is not even JSON.
    """
    text = body.decode(errors="replace").strip()[:_TEXT_MAX]
    try:
        value = json.loads(body)
    except ValueError:
        return " ".join(text.split()) or "no reason given"
    if isinstance(value, dict):
        value = value.get("fault_message") or value.get("error") or text
    if isinstance(value, list):
        value = ": ".join(map(str, value))
    return str(value)[:_TEXT_MAX]
