"""``katapy monitor``: the figures of all pods of this host, for Prometheus."""

from __future__ import annotations

import argparse
import signal

import trio

from shim.errors import InvalidArgument
from shim.http.server import HttpServer
from shim.monitoring.node import NodeMonitor
from shim.monitoring.pods import running_pods

DEFAULT = "127.0.0.1:8090"
CONNECTIONS = 32
BODY_MAX = 1 << 10
_TIMEOUT_S = 8.0  # Prometheus gives a scrape 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--listen",
        "--listen-address",
        default=DEFAULT,
        metavar="ADDRESS:PORT",
        help=f"where to serve HTTP (default: {DEFAULT}); there is no access control",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long a pod may take to answer (default: {_TIMEOUT_S:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 0, or a KatapyError."""
    host, port = parse_address(arguments.listen)
    trio.run(_serve, host, port, arguments.timeout)
    return 0


def parse_address(text: str) -> tuple[str, int]:
    """Take ``ADDRESS:PORT`` apart; without an address it is every one of the host.

    Raises:
        InvalidArgument: it is none.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(f"--listen {text}: expected ADDRESS:PORT, as in {DEFAULT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _serve(host: str, port: int, timeout: float) -> None:
    monitor = NodeMonitor(running_pods, timeout)
    server = HttpServer(
        monitor.answer, connections=CONNECTIONS, body_max=BODY_MAX, answer_timeout=4 * timeout
    )
    listeners = await trio.open_tcp_listeners(port, host=host or None)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.serve_connection, listeners)
            for listener in listeners:
                address = listener.socket.getsockname()
                print(f"listening on {address[0]} port {address[1]}", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break
