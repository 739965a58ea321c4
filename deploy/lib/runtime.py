"""The runtime of this checkout, ready for a private containerd to start it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lib.command import run
from deploy.lib.work import REPOSITORY, work_dir

NAME = "io.containerd.katapy.v2"
SHIM = "containerd-shim-katapy-v2"
SHIM_PACKAGES = ("shim", "vmm", "protos")

# All of ours, and of the libraries what the shim imports. Arguments: as write_launcher.
_COMPILE = """
import sys
source, sys.pycache_prefix, site, *packages = sys.argv[1:]
sys.path[:0] = [source, site]
import compileall
for package in packages:
    compileall.compile_dir(f"{source}/{package}", quiet=2)
import shim.daemon
"""


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
    write_launcher(binaries / SHIM, REPOSITORY, site_packages, work_dir() / "bytecode")
    config = folder / "config.toml"
    config.write_text(f'[katapy]\ncache_dir = "{image_dir()}"\n')
    env = {"KATAPY_CONF_FILE": str(config), "KATAPY_STATE_DIR": str(state)}
    return Runtime(NAME, binaries, config, state, env)


def write_launcher(target: Path, source_dir: Path, site_packages: Path, bytecode: Path) -> None:
    """Write the program that containerd starts as the shim, and compile what it loads.

    Params: ``bytecode`` is where the compiled modules are kept. Raises: DeployError.
    """
    # Not a virtual environment's python, which starts slower than what it stands for.
    python = Path(sys.executable).resolve()
    where: tuple[str | Path, ...] = (source_dir, bytecode, site_packages)
    text = run([python, "-m", "shim.launcher", python, *where], timeout=30, cwd=REPOSITORY)
    run([python, "-ISOO", "-c", _COMPILE, *where, *SHIM_PACKAGES], timeout=600)
    target.write_text(text)
    target.chmod(0o755)


def image_dir() -> Path:
    """Where this checkout's guest kernel and image are kept."""
    return work_dir() / "guest"
