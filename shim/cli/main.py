"""The ``katapy`` command: one module a verb, imported only when it is asked for."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "check": "is this host ready, and what to do if it is not",
    "cp": "copy files into and out of a running container",
    "env": "versions and the configuration in effect",
    "image": "build and list guest images",
    "bench": "measure pods on this host, beside runc",
    "cleanup": "remove what crashed sandboxes left",
    "direct-volume": "disks that guests mount: add, remove, stats, resize",
    "exec": "a shell or a command in a pod's guest, for debugging",
    "iptables": "a pod's packet filter: get, set",
    "metrics": "a pod's figures, in Prometheus's text format",
    "monitor": "serve the figures of all pods of this host to Prometheus",
    "version": "print the version",
}
"""Each is a module here with ``add_arguments(parser)`` and ``run(arguments) -> int``."""

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 when it worked, 1 when it did not (one line on stderr says why), 2 for wrong usage.
    """
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.ERROR, format="katapy: %(message)s")
    module = import_module(_module(arguments.verb))
    try:
        status: int = module.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from flushing into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return 1
    except _expected_errors() as error:
        print(f"katapy {arguments.verb}: {error}", file=sys.stderr)
        return 1
    return status


def _module(verb: str) -> str:
    return f"shim.cli.{verb.replace('-', '_')}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="katapy", description="Look after katapy, the runtime that gives every pod a VM."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if name == wanted:
            import_module(_module(name)).add_arguments(verb)
    return parser.parse_args(argv)


def _expected_errors() -> tuple[type[Exception], ...]:
    from shim.errors import KatapyError
    from vmm.errors import VmmError
    from vmm.image.errors import ImageError

    return (KatapyError, VmmError, ImageError, OSError)


if __name__ == "__main__":
    sys.exit(main())
