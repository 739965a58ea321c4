"""``katapy metrics``: the figures of one pod, as its shim tells them."""

from __future__ import annotations

import argparse
import sys

import trio

from shim.cli.running import management_of
from shim.errors import Unavailable
from shim.http.client import ask
from vmm.http1 import Response

CALL_TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sandbox", metavar="SANDBOX", help="the pod's id")


def run(arguments: argparse.Namespace) -> int:
    """Print them; 0, or a KatapyError."""
    path = management_of(arguments.sandbox)

    async def fetch() -> Response:
        with trio.fail_after(CALL_TIMEOUT_S):
            return await ask(path, "GET", "/metrics")

    try:
        response = trio.run(fetch)
    except trio.TooSlowError:
        raise Unavailable(
            f"sandbox {arguments.sandbox}: its shim at {path} does not answer"
        ) from None
    text = response.body.decode(errors="replace")
    if response.status != 200:
        raise Unavailable(f"sandbox {arguments.sandbox}: {text.strip()}")
    sys.stdout.write(text)
    return 0
