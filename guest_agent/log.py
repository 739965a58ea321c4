"""Log lines in Kata's form, one JSON object each, to the console.

Source: the slog JSON keys that Kata's shims parse from the console.
"""

from __future__ import annotations

import os
import time

from .jsonlite import dumps

LEVELS = {"trace": 0, "debug": 1, "info": 2, "warn": 3, "error": 4, "critical": 5}
_SHORT = ("TRCE", "DEBG", "INFO", "WARN", "ERRO", "CRIT")
_threshold = LEVELS["info"]


def set_level(name: str) -> None:
    """Drop lines below a level; an unknown name changes nothing."""
    global _threshold
    _threshold = LEVELS.get(name, _threshold)


def log(level: str, message: str, **fields: object) -> None:
    """Write one line; a console that can't be written to is no reason to fail."""
    rank = LEVELS[level]
    if rank < _threshold:
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    line: dict[str, object] = {
        "msg": message,
        "level": _SHORT[rank],
        "ts": f"{stamp}.{int(now % 1 * 1e6):06d}Z",
        "pid": str(os.getpid()),
        "name": "katapy-agent",
        "subsystem": "agent",
        "source": "agent",
        "version": "0.1.0",
    }
    for key, value in fields.items():
        line[key] = str(value)
    try:
        os.write(2, dumps(line).encode() + b"\n")
    except OSError:
        pass
