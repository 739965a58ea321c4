"""``katapy cleanup``: undo what sandboxes whose shim is dead left on this host."""

from __future__ import annotations

import argparse
import sys

from shim.cleanup import ledger as ledgers
from shim.cleanup import sweeper
from shim.errors import AlreadyExists, KatapyError, NotFound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--state-dir",
        default=ledgers.state_dir(),
        metavar="DIR",
        help="directory of the ledgers (default: $KATAPY_STATE_DIR or %(default)s)",
    )
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="only say what would be undone"
    )


def run(arguments: argparse.Namespace) -> int:
    """Clean up, saying what is done; 1 when something is left."""
    if arguments.dry_run:
        return dry_run(arguments.state_dir)
    swept, left = sweeper.sweep_all(arguments.state_dir, _complain)
    print(f"{swept} dead {_sandboxes(swept)} cleaned up" + (f", {left} not fully" if left else ""))
    return 1 if left else 0


def dry_run(state_dir: str) -> int:
    """Print what dead sandboxes have left, changing nothing; 1 when a ledger is unreadable."""
    dead = 0
    status = 0
    for path in ledgers.find_all(state_dir):
        try:
            # Owning it is the proof that its shim is dead.
            with ledgers.Ledger.open(path) as ledger:
                print(f"{ledger.namespace}/{ledger.sandbox_id}:")
                for entry in ledger.entries():
                    print(f"  {entry}")
        except (AlreadyExists, NotFound):  # alive, or gone meanwhile
            continue
        except (KatapyError, OSError) as error:
            _complain(str(error))
            status = 1
            continue
        dead += 1
    print(f"{dead} dead {_sandboxes(dead)} to clean up")
    return status


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


def _sandboxes(count: int) -> str:
    return "sandbox" if count == 1 else "sandboxes"
