"""The runtime of this checkout, ready for a private containerd to start it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Runtime:
    """A containerd runtime and what a daemon and ctr need to use it.

    ``launcher_dir`` goes into the daemon's PATH, ``env`` into its environment,
    ``ctr_options`` into each ``ctr run``.
    """

    name: str
    launcher_dir: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    ctr_options: tuple[str, ...] = ()


def prepare_runtime(folder: Path) -> Runtime:
    raise NotImplementedError
