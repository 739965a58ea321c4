"""What Cloud Hypervisor refuses, and how each version says so."""

from __future__ import annotations

import json
from typing import Literal

from tests.standins.http_dialect import Response

Kind = Literal[
    "bad_request",
    "not_found",
    "json",
    "busy",
    "missing",
    "unknown_id",
    "duplicate",
    "config",
    "internal",
]

_JSON_ARRAYS = (47,)
_STATUS_BY_CAUSE = (53,)
_FINER_STATUS = (54,)


class Refused(Exception):
    """A request that fails.

    Args:
        kind: what went wrong, which the status depends on.
        chain: messages, the outermost first; without the one that all share.
    """

    def __init__(self, kind: Kind, *chain: str) -> None:
        super().__init__(": ".join(chain))
        self.kind = kind
        self.chain = chain


def response(error: Refused, version: tuple[int, ...], *, creating: bool) -> Response:
    """Return the answer to a failed request.

    Args:
        error: why.
        version: of Cloud Hypervisor.
        creating: whether it was ``vm.create``, which tells bad JSON apart in all versions.

    Source: vmm/src/api/http/mod.rs of v46.0, v51.1, v53.0 and of main in August 2026.
    """
    status = _status(error.kind, version, creating=creating)
    below = error.kind in ("bad_request", "not_found", "json", "busy")
    chain = error.chain if below else ("Error from API", *error.chain)
    if version >= _JSON_ARRAYS:
        return Response(status, json.dumps(chain).encode())
    return Response(status, ": ".join(chain).encode())


def _status(kind: Kind, version: tuple[int, ...], *, creating: bool) -> int:
    match kind:
        case "bad_request":
            return 400
        case "not_found":
            return 404
        case "busy":
            return 429
        case "json" if creating or version >= _STATUS_BY_CAUSE:
            return 400
        case "missing" if version >= _STATUS_BY_CAUSE:
            return 404
        case "unknown_id" if version >= _FINER_STATUS:
            return 404
        case "duplicate" if version >= _FINER_STATUS:
            return 409
        case "config" if version >= _FINER_STATUS:
            return 400
    return 500
