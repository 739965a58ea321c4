"""Undo everything a ledger lists; for ``delete`` and ``katapy cleanup``.

Processes first, all at once, then the rest from the last made to the first. Each
step has its own deadline and runs whatever became of the one before; what could
not be undone is reported and stays in the ledger. Standard library only.
"""

from __future__ import annotations

import threading
import time

from shim.cleanup import ledger as ledgers
from shim.cleanup import process_table, undo
from shim.errors import AlreadyExists, Internal, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.cleanup.ledger import Entry, Ledger

    Report = Callable[[str], None]

KILL_TIMEOUT = 2.0  # seconds for all processes to end after SIGKILL
LOGGER_TIMEOUT = 1.0  # seconds for logging programs to finish by themselves
STEP_TIMEOUT = 3.0  # seconds for any other step


def sweep(ledger: Ledger, report: Report, container: str | None = None) -> list[Entry]:
    """Undo the entries of a ledger the caller owns.

    Args:
        ledger: from Ledger.open or Ledger.create.
        report: takes a line about each thing that could not be undone.
        container: only what belongs to this container; None for everything.

    Returns:
        The entries that are left; empty when all is undone.
    """
    wanted = [e for e in ledger.entries() if container is None or e.container == container]
    _end_processes(ledger, [e for e in wanted if e.kind == "process"], report)
    for entry in reversed([e for e in wanted if e.kind != "process"]):
        # Of another boot only what is on disk can be left.
        gone = not ledger.this_boot and entry.kind not in ("file", "dir", "socket")
        error = None if gone else _bounded(entry)
        if error is None:
            _forget(ledger, entry, report)
        else:
            report(f"{entry}: {error}")
    left = {entry.id for entry in ledger.entries()}
    return [entry for entry in wanted if entry.id in left]


def sweep_all(state: str, report: Report) -> tuple[int, int]:
    """Sweep the ledgers of all shims that no longer run.

    Args:
        state: the state directory.
        report: takes a line about each thing that could not be undone.

    Returns:
        How many sandboxes were swept, and how many of them still have entries.
    """
    swept = left = 0
    for path in list(ledgers.find_all(state)):
        try:
            ledger = ledgers.Ledger.open(path)
        except (AlreadyExists, NotFound):  # in use, or gone meanwhile
            continue
        except (Internal, OSError) as error:
            report(str(error))
            left += 1
            continue
        swept += 1
        sweep(ledger, report)
        if not ledger.close():
            left += 1
    return swept, left


def _end_processes(ledger: Ledger, entries: list[Entry], report: Report) -> None:
    identities = {entry.id: _identities(ledger, entry) for entry in entries}
    everyone = {identity for found in identities.values() for identity in found}
    loggers = {
        identity
        for entry in entries
        if entry.text("role") == ledgers.LOGGER_ROLE
        for identity in identities[entry.id]
    }
    running = set(process_table.kill(everyone - loggers, KILL_TIMEOUT))
    # The shim was the other end of their input, so they have the last of it by now.
    deadline = time.monotonic() + LOGGER_TIMEOUT
    for pid, started in loggers:
        process_table.wait_for_end(pid, started, max(deadline - time.monotonic(), 0))
    running |= set(process_table.kill(loggers, KILL_TIMEOUT))
    for entry in entries:
        if running.isdisjoint(identities[entry.id]):
            _forget(ledger, entry, report)
        else:
            report(f"{entry}: still runs {KILL_TIMEOUT:g} s after SIGKILL (see /proc/PID/stack)")


def _identities(ledger: Ledger, entry: Entry) -> list[tuple[int, int]]:
    if not ledger.this_boot:
        return []
    pid = entry.number("pid")
    if pid:
        return [(pid, entry.number("start_time"))]
    marker = entry.text("marker")  # announced, but its pid was never recorded
    return process_table.find_by_marker(marker) if marker else []


def _bounded(entry: Entry) -> str | None:
    """Undo one entry within STEP_TIMEOUT; gives what went wrong, if anything."""
    outcome: list[str | None] = []

    def run() -> None:
        try:
            undo.undo(entry)
            outcome.append(None)
        except Exception as error:
            outcome.append(str(error) or repr(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(STEP_TIMEOUT)
    return outcome[0] if outcome else f"not undone within {STEP_TIMEOUT:g} s"


def _forget(ledger: Ledger, entry: Entry, report: Report) -> None:
    try:
        ledger.remove(entry)
    except OSError as error:
        report(f"{ledger.path}: {error}")
