"""Stand-ins ready to be named in a configuration: programs with their settings baked in.

The shim that starts them hands on no environment of the tests', and the jailer clears what
there is, so each installed program is a script that sets what the stand-in needs.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.standins.settings import ROOT
from tests.standins.vsock import PROGRAM_VARIABLE

VERSION_VARIABLES = {
    "firecracker": "KATAPY_STANDIN_FIRECRACKER_VERSION",
    "cloud-hypervisor": "KATAPY_STANDIN_CLOUD_HYPERVISOR_VERSION",
}
REAL_VARIABLES = {
    "firecracker": "KATAPY_FIRECRACKER",
    "jailer": "KATAPY_JAILER",
    "cloud-hypervisor": "KATAPY_CLOUD_HYPERVISOR",
}


@dataclass(frozen=True)
class Program:
    """A VMM, or the jailer.

    Args:
        path: what to run.
        real: whether it is the real one, named by an environment variable.
    """

    path: Path
    real: bool


def provide(name: str, directory: Path, vsock_daemon: Path, version: str = "") -> Program:
    """Return the real program where the environment names one, else a stand-in.

    Args:
        name: ``firecracker``, ``jailer`` or ``cloud-hypervisor``.
        directory: where to put the script; made if missing.
        vsock_daemon: the vhost-device-vsock to use.
        version: to play; empty for the stand-in's default.
    """
    real = os.environ.get(REAL_VARIABLES[name])
    if real:
        return Program(Path(real), real=True)
    # Resolved, as a jail has the real file only.
    settings = {PROGRAM_VARIABLE: str(vsock_daemon.resolve())}
    if version:
        settings[VERSION_VARIABLES[name]] = version
    words = [f"{key}={shlex.quote(value)}" for key, value in settings.items()]
    program = shlex.quote(str(ROOT / "tests" / "standins" / name))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f'#!/bin/sh\nexec /usr/bin/env {" ".join(words)} {program} "$@"\n')
    path.chmod(0o755)
    return Program(path, real=False)
