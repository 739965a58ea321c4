"""Where everything that the deploy commands make is kept.

One directory holds the virtual environment, unpacked packages, images and the
state of private daemons, so that removing it removes all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def work_dir() -> Path:
    """The work directory: ``$KATAPY_WORK``, else ``.cache`` in the checkout; made if missing."""
    path = Path(os.environ.get("KATAPY_WORK") or REPOSITORY / ".cache").resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the work directory, so that two commands don't build one thing.

    The kernel drops the lock if the holder dies, so no lock can be left behind.
    """
    folder = work_dir() / "locks"
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of ``target`` if the block succeeds.

    ``target`` is therefore complete or absent, whatever kills the process.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
