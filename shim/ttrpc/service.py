"""Method tables from protobuf service descriptors, for servers and for clients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from shim.ttrpc import status
from shim.ttrpc.durations import Durations

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from shim.ttrpc.client import Client
    from shim.ttrpc.messages import Metadata
    from shim.ttrpc.stream import ClientStream

Handler = Callable[..., Any]


class CallContext:
    """What a handler may know of its call besides the message.

    Attributes:
        service, method: the names the caller used.
        metadata: key and value pairs in the order sent.
        deadline: trio time at which the caller gives up, ``math.inf`` for never.
    """

    __slots__ = ("deadline", "metadata", "method", "service")

    def __init__(
        self, service: str, method: str, metadata: tuple[tuple[str, str], ...], deadline: float
    ) -> None:
        self.service = service
        self.method = method
        self.metadata = metadata
        self.deadline = deadline

    def value(self, key: str) -> str | None:
        """Give the first metadata value of a (lower-case) key."""
        return next((value for name, value in self.metadata if name == key), None)


class Method:
    """One row of a method table.

    The handler's shape follows the kind of the method:

    * unary: ``def`` (run inline, must not take long) or ``async def``
      ``(request, context) -> response``;
    * server streaming: ``async def (request, stream, context) -> None``;
    * client streaming: ``async def (stream, context) -> response``;
    * both: ``async def (stream, context) -> None``.

    Args:
        name: the method's name on the wire.
        handler: see above.
        decode, encode: codec of the request and the response; ``decode`` raises ValueError
            or DecodeError for malformed bytes.
        client_streaming, server_streaming: the method's kind.
        cancel_on_disconnect: whether a lost connection cancels the handler. Only for calls
            that wait and change nothing; the others finish, so that nothing is left half done.

    Attributes:
        durations: of the calls that were answered.
    """

    __slots__ = (
        "cancel_on_disconnect",
        "client_streaming",
        "decode",
        "durations",
        "encode",
        "handler",
        "inline",
        "name",
        "server_streaming",
        "streaming",
    )

    def __init__(
        self,
        name: str,
        handler: Handler,
        decode: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
        *,
        client_streaming: bool = False,
        server_streaming: bool = False,
        cancel_on_disconnect: bool = False,
    ) -> None:
        self.name = name
        self.handler = handler
        self.decode = decode
        self.encode = encode
        self.client_streaming = client_streaming
        self.server_streaming = server_streaming
        self.streaming = client_streaming or server_streaming
        self.inline = not _is_async(handler)
        self.cancel_on_disconnect = cancel_on_disconnect
        self.durations = Durations()
        if self.inline and (self.streaming or cancel_on_disconnect):
            raise TypeError(f"{name}: a handler that streams or waits must be 'async def'")

    def parse(self, payload: bytes) -> Any:
        """Decode a message from the client.

        Raises:
            TtrpcError: INVALID_ARGUMENT, it is malformed.
        """
        try:
            return self.decode(payload)
        except (ValueError, DecodeError) as error:
            raise status.TtrpcError(
                status.INVALID_ARGUMENT, f"malformed message for {self.name}: {error}"
            ) from error


class Service:
    """A service's full name and its methods."""

    def __init__(self, name: str, methods: Iterable[Method]) -> None:
        self.name = name
        self.methods = {method.name: method for method in methods}


def build_service(
    descriptor: ServiceDescriptor,
    handlers: Mapping[str, Handler],
    *,
    cancel_on_disconnect: Collection[str] = (),
) -> Service:
    """Build the method table of a protobuf service.

    Args:
        descriptor: as in ``pb2.DESCRIPTOR.services_by_name["Task"]``.
        handlers: by method name; methods without one answer UNIMPLEMENTED.
        cancel_on_disconnect: names of the methods whose handlers end with the connection.

    Raises:
        ValueError: a name is not a method of the service.
    """
    known = descriptor.methods_by_name
    if wrong := (set(handlers) | set(cancel_on_disconnect)) - set(known):
        raise ValueError(f"{descriptor.full_name} has no method {sorted(wrong)}")
    methods = []
    for name, handler in handlers.items():
        method: Any = known[name]
        methods.append(
            Method(
                name,
                handler,
                GetMessageClass(method.input_type).FromString,
                _encoder(GetMessageClass(method.output_type)),
                client_streaming=method.client_streaming,
                server_streaming=method.server_streaming,
                cancel_on_disconnect=name in cancel_on_disconnect,
            )
        )
    return Service(descriptor.full_name, methods)


def _encoder(expected: type[Any]) -> Callable[[Any], bytes]:
    def encode(message: Any) -> bytes:
        if type(message) is not expected:
            raise TypeError(f"the handler gave {message!r} for a {expected.DESCRIPTOR.full_name}")
        encoded: bytes = message.SerializeToString()
        return encoded

    return encode


class MessageStream:
    """A ClientStream of protobuf messages."""

    def __init__(self, stream: ClientStream, method: MethodDescriptor) -> None:
        self.encoded = stream
        self._response = GetMessageClass(method.output_type)

    async def send(self, message: Any) -> None:
        """Send a message; raises as ``ClientStream.send``."""
        await self.encoded.send(message.SerializeToString())

    def close_send(self) -> None:
        """Tell the server that no more messages come."""
        self.encoded.close_send()

    async def receive(self) -> Any | None:
        """Take the next message, None at the end; raises as ``ClientStream.receive``."""
        payload = await self.encoded.receive()
        return None if payload is None else _parse(self._response, payload)

    def cancel(self) -> None:
        """Give the call up."""
        self.encoded.cancel()

    async def __aenter__(self) -> MessageStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Stub:
    """A service as its client sees it: one attribute per method.

    * unary: ``await stub.Method(request, timeout=None, metadata=()) -> response``;
    * server streaming: ``stub.Method(request, metadata=()) -> MessageStream``;
    * client streaming and both: ``stub.Method(metadata=()) -> MessageStream``.
    """

    def __init__(self, client: Client, descriptor: ServiceDescriptor) -> None:
        self._name = descriptor.full_name
        for name, method in descriptor.methods_by_name.items():
            if method.client_streaming or method.server_streaming:
                call: Any = functools.partial(_stream, client, self._name, method)
            else:
                response = GetMessageClass(method.output_type)
                call = functools.partial(_call, client, self._name, name, response)
            setattr(self, name, call)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"{self._name} has no method {name}")


def stub(client: Client, descriptor: ServiceDescriptor) -> Stub:
    """Give the stub of a service; ``descriptor`` as in ``build_service``."""
    return Stub(client, descriptor)


async def _call(
    client: Client,
    service: str,
    method: str,
    response: type[Any],
    request: Any,
    *,
    timeout: float | None = None,
    metadata: Metadata = (),
) -> Any:
    started = perf_counter_ns()
    try:
        payload = await client.call(service, method, request.SerializeToString(), timeout, metadata)
    finally:
        kind = request.DESCRIPTOR.full_name
        client.durations.setdefault(kind, Durations()).add(perf_counter_ns() - started)
    return _parse(response, payload)


def _stream(
    client: Client,
    service: str,
    method: MethodDescriptor,
    request: Any | None = None,
    *,
    metadata: Metadata = (),
) -> MessageStream:
    if (request is None) != method.client_streaming:
        raise TypeError(f"{method.name} takes {'no' if method.client_streaming else 'a'} request")
    payload = None if request is None else request.SerializeToString()
    return MessageStream(client.stream(service, method.name, payload, metadata), method)


def _parse(message: type[Any], payload: bytes) -> Any:
    try:
        return message.FromString(payload)
    except DecodeError as error:
        raise status.TtrpcError(
            status.INTERNAL, f"the server sent a malformed {message.DESCRIPTOR.full_name}: {error}"
        ) from error


def _is_async(handler: Handler) -> bool:
    if inspect.iscoroutinefunction(handler):
        return True
    return inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
