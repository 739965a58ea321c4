"""A small HTTP server under trio: few clients, small requests, each with a deadline."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from shim.http.codec import Answer, Request, RequestDecoder, encode_answer, failure
from vmm.http1 import HttpError, TooLarge

Handler = Callable[[Request], Awaitable[Answer]]

_RECEIVE = 65536
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger(__name__)


class HttpServer:
    """Serves connections with one handler.

    Args:
        handler: answers a request; an exception of its is told as status 500.
        connections: how many may be served at a time; one more is told to come again.
        body_max: bytes a request's content may have.
        idle_timeout: seconds a client may take for a whole request, or to begin one.
        answer_timeout: seconds the handler may take.
        send_timeout: seconds a client may take for an answer.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        connections: int,
        body_max: int,
        idle_timeout: float = 30.0,
        answer_timeout: float = 60.0,
        send_timeout: float = 30.0,
    ) -> None:
        self._handler = handler
        self._room = connections
        self._body_max = body_max
        self._idle_timeout = idle_timeout
        self._answer_timeout = answer_timeout
        self._send_timeout = send_timeout

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Serve a connected stream until its end; closes it."""
        try:
            async with stream:
                if not self._room:
                    await self._send(stream, failure(503, "too many connections"), keep=False)
                    return
                self._room -= 1
                try:
                    await self._serve(stream)
                finally:
                    self._room += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client is gone, or takes too long

    async def _serve(self, stream: trio.SocketStream) -> None:
        decoder = RequestDecoder(self._body_max)
        while True:
            try:
                request = await self._receive(stream, decoder)
            except HttpError as error:
                status = 413 if isinstance(error, TooLarge) else 400
                await self._send(stream, failure(status, str(error)), keep=False)
                return
            if request is None:
                return
            answer = await self._answer(request)
            head_only = request.method == "HEAD"
            keep = request.keep_alive
            await self._send(stream, answer, keep=keep, head_only=head_only)
            if not keep:
                return
            decoder = decoder.next()

    async def _receive(self, stream: trio.SocketStream, decoder: RequestDecoder) -> Request | None:
        """The next request; None at the end of the connection."""
        told = False
        with trio.fail_after(self._idle_timeout):
            request = decoder.feed(b"")
            while request is None:
                if decoder.waits_for_continue and not told:
                    told = True
                    await stream.send_all(_CONTINUE)
                data = await stream.receive_some(_RECEIVE)
                if not data:
                    return None
                request = decoder.feed(bytes(data))
        return request

    async def _answer(self, request: Request) -> Answer:
        what = f"{request.method} {request.path}"
        with trio.move_on_after(self._answer_timeout):
            try:
                return await self._handler(request)
            except Exception as error:
                _log.exception("%s failed", what)
                return failure(500, f"{what}: {type(error).__name__}: {error}")
        return failure(504, f"{what}: no answer within {self._answer_timeout:g} s")

    async def _send(
        self, stream: trio.SocketStream, answer: Answer, *, keep: bool, head_only: bool = False
    ) -> None:
        with trio.fail_after(self._send_timeout):
            await stream.send_all(encode_answer(answer, head_only=head_only, keep_alive=keep))
