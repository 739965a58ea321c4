"""Task events to containerd, in order, without ever holding up a call.

``publish`` only puts an event into a bounded queue. One task sends the head of the
queue until it is taken or given up, so events are never overtaken by later ones.
A connection that broke, as after a restart of the daemon, is made anew at once;
other failures are tried again with growing pauses.

Source: containerd pkg/shim/publisher.go; api/services/ttrpc/events.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from protos.containerd import ttrpc_events_pb2, types_pb2
from shim.ttrpc.client import ConnectionClosed, open_client
from shim.ttrpc.status import INVALID_ARGUMENT, TtrpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from shim.log import Log
    from shim.ttrpc.client import Client

CAPACITY = 2048
CALL_TIMEOUT = 5.0  # seconds to connect, and again for each call
ATTEMPTS_MAX = 5
RETRY_PAUSE = 1.0  # seconds, times the number of failed attempts
_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_METHOD = "Forward"


class Publisher:
    """The queue of a shim's events and the task that empties it.

    Args:
        namespace: containerd namespace of the events.
        log: gets a line for each event that is lost.
        ttrpc_address: path of containerd's ttrpc socket; "" to execute
            ``publish_binary`` for each event, as ancient daemons want it.
        grpc_address: containerd's gRPC socket, for ``publish_binary``.
        publish_binary: containerd's executable.

    A client that gives none of these, as CRI-O, takes no events; they are logged.
    """

    def __init__(
        self,
        namespace: str,
        log: Log,
        *,
        ttrpc_address: str = "",
        grpc_address: str = "",
        publish_binary: str = "",
    ) -> None:
        self._namespace = namespace
        self._log = log
        self._ttrpc_address = ttrpc_address.removeprefix("unix://")
        self._grpc_address = grpc_address
        self._publish_binary = publish_binary
        self._send, self._receive = trio.open_memory_channel[types_pb2.Envelope](CAPACITY)
        self._head: types_pb2.Envelope | None = None
        self._attempts = 0
        self._finished = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def has_receiver(self) -> bool:
        """Whether there is somebody to send events to."""
        return bool(self._ttrpc_address or (self._publish_binary and self._grpc_address))

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event; never blocks. It is dropped, with a log line, when the queue is full.

        Args:
            topic: such as ``/tasks/exit``.
            event: a containerd.events message.
        """
        if not self.has_receiver:
            text = " ".join(str(event).split())
            self._log.info("event", topic=topic, event=text)
            return
        envelope = types_pb2.Envelope(namespace=self._namespace, topic=topic)
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.event.type_url = event.DESCRIPTOR.full_name  # containerd wants no prefix
        envelope.event.value = event.SerializeToString()
        try:
            self._send.send_nowait(envelope)
        except trio.WouldBlock:
            self._log.error("event dropped: the queue is full", topic=topic, capacity=CAPACITY)
        except trio.ClosedResourceError:
            self._log.error("event dropped: the shim is ending", topic=topic)

    async def run(self) -> None:
        """Send events until drain() is called and the queue is empty; start it in a nursery."""
        try:
            with self._scope:
                while await self._fetch():
                    if self._ttrpc_address:
                        await self._connect_and_forward()
                    else:
                        await self._execute()
        finally:
            self._finished.set()

    async def drain(self, timeout: float) -> None:
        """Take no more events and send the queued ones, for at most ``timeout`` seconds."""
        self._send.close()
        with trio.move_on_after(timeout):
            await self._finished.wait()
        if not self._finished.is_set():
            lost = self._receive.statistics().current_buffer_used + (self._head is not None)
            self._log.error("events lost: containerd did not take them in time", events=lost)
            self._scope.cancel()

    async def _fetch(self) -> bool:
        """Have an event at the head of the queue; says false when none will come any more."""
        if self._head is None:
            try:
                self._head = await self._receive.receive()
            except trio.EndOfChannel:
                return False
            self._attempts = 0
        return True

    async def _connect_and_forward(self) -> None:
        """Forward events over one connection for as long as it works."""
        try:
            with trio.fail_after(CALL_TIMEOUT):
                stream = await trio.open_unix_socket(self._ttrpc_address)
        except (OSError, RuntimeError, trio.TooSlowError) as error:
            await self._failed(error)
            return
        proven = False
        failure: Exception | None = None
        async with open_client(stream) as client:
            while failure is None and await self._fetch():
                try:
                    await self._forward(client)
                except (TtrpcError, OSError, trio.TooSlowError) as error:
                    failure = error
                else:
                    proven = True
                    self._head = None
        # A connection that worked and then closed is the daemon's restart: no failure yet.
        if failure is not None and not (proven and isinstance(failure, ConnectionClosed)):
            await self._failed(failure)

    async def _forward(self, client: Client) -> None:
        assert self._head is not None
        request = ttrpc_events_pb2.ForwardRequest(envelope=self._head)
        await client.call(
            _SERVICE,
            _METHOD,
            request.SerializeToString(),
            timeout=CALL_TIMEOUT,
            metadata=[("containerd-namespace-ttrpc", self._namespace)],
        )

    async def _execute(self) -> None:
        """Hand the head to containerd's ``publish`` command."""
        assert self._head is not None
        command = [self._publish_binary, "--address", self._grpc_address, "publish"]
        command += ["--topic", self._head.topic, "--namespace", self._namespace]
        try:
            with trio.fail_after(CALL_TIMEOUT):
                result = await trio.run_process(
                    command,
                    stdin=self._head.event.SerializeToString(),
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
            if result.returncode:
                text = result.stderr.decode(errors="replace").strip()
                raise OSError(f"{self._publish_binary} publish: {text or result.returncode}")
        except (OSError, trio.TooSlowError) as error:
            await self._failed(error)
        else:
            self._head = None

    async def _failed(self, error: BaseException) -> None:
        """Pause before the head's next attempt, or give it up."""
        assert self._head is not None
        self._attempts += 1
        refused = isinstance(error, TtrpcError) and error.code == INVALID_ARGUMENT
        text = str(error) or type(error).__name__
        if refused or self._attempts > ATTEMPTS_MAX:
            self._log.error("event dropped", topic=self._head.topic, error=text)
            self._head = None
        else:
            self._log.debug("event not sent yet", topic=self._head.topic, error=text)
            await trio.sleep(RETRY_PAUSE * self._attempts)
