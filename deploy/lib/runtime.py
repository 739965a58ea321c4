"""The runtime of this checkout, ready for a private containerd to start it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lib.command import run
from deploy.lib.venv import compile_tree
from deploy.lib.work import REPOSITORY, work_dir

NAME = "io.containerd.katapy.v2"
SHIM = "containerd-shim-katapy-v2"
SHIM_PACKAGES = ("shim", "vmm", "protos")


@dataclass(frozen=True)
class Runtime:
    """A containerd runtime and what a daemon and ctr need to use it.

    ``launcher_dir`` goes into the daemon's PATH, ``env`` into its environment;
    ``config`` is its configuration file, ``state_dir`` where it keeps its state.
    """

    name: str
    launcher_dir: Path | None = None
    config: Path | None = None
    state_dir: Path | None = None
    env: dict[str, str] = field(default_factory=dict)


def prepare_runtime(folder: Path, site_packages: Path) -> Runtime:
    """Set the runtime of this checkout up in ``folder``: launcher and configuration.

    Params: ``site_packages`` holds trio and protobuf. State is kept in ``folder``/s, so
    ``folder`` must have a short path, for its sockets; images in the work directory.
    """
    binaries = folder / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    state = folder / "s"
    state.mkdir(exist_ok=True)
    compile_tree(Path(sys.executable), *(REPOSITORY / name for name in SHIM_PACKAGES))
    write_launcher(binaries / SHIM, REPOSITORY, site_packages)
    config = folder / "config.toml"
    config.write_text(f'[katapy]\ncache_dir = "{image_dir()}"\n')
    env = {"KATAPY_CONF_FILE": str(config), "KATAPY_STATE_DIR": str(state)}
    return Runtime(NAME, binaries, config, state, env)


def write_launcher(target: Path, source_dir: Path, site_packages: Path) -> None:
    """Write the program that containerd starts as the shim. Raises: DeployError."""
    # Not a virtual environment's python, which starts slower than what it stands for.
    python = Path(sys.executable).resolve()
    words: list[str | Path] = [python, "-m", "shim.launcher", python, source_dir, site_packages]
    text = run(words, timeout=30, cwd=REPOSITORY)
    target.write_text(text)
    target.chmod(0o755)


def image_dir() -> Path:
    """Where this checkout's guest kernel and image are kept."""
    return work_dir() / "guest"
