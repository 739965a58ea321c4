"""Our own modules that go into the guest: the agent and what it shares with the shim."""

from __future__ import annotations

from pathlib import Path

# The package's parent: the source tree, or where pip installed it. Both look the same.
_HOME = Path(__file__).resolve().parents[2]

# The trio drivers stay out: the guest drives the same protocol code with a loop of its own.
_PATTERNS = (
    "guest_agent/**/*.py",
    "shim/__init__.py",
    "shim/ttrpc/__init__.py",
    "shim/ttrpc/status.py",
    "shim/ttrpc/framing.py",
    "shim/ttrpc/messages.py",
    "shim/ttrpc/connection.py",
    "protos/__init__.py",
    "protos/lite.py",
    "protos/tables/*.py",
)
_BUILDER = ("vmm/image/*.py", "vmm/image/data/*", "vmm/kernel.py")


def agent_sources(home: Path = _HOME) -> dict[str, bytes]:
    """Return the guest's modules by path, sorted.

    Args:
        home: the directory that holds our packages.
    """
    return _read(home, _PATTERNS)


def builder_sources() -> dict[str, bytes]:
    """Return what builds an image, by path: a change there changes images too."""
    return _read(_HOME, _BUILDER)


def data_file(name: str) -> bytes:
    """Return one of the files that go into an image as they are."""
    return (Path(__file__).with_name("data") / name).read_bytes()


def _read(home: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    paths = sorted(path for pattern in patterns for path in home.glob(pattern) if path.is_file())
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}
