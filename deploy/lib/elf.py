"""Binding an unpacked program to the dynamic linker and libraries unpacked with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.lib.command import DeployError, run


def relocate(program: Path, root: Path, final_root: Path) -> None:
    """Make ``program`` run with the libraries below ``root`` if it can't with the host's.

    A program built against a newer C library doesn't start with an older one. One that the
    host's libraries satisfy is left as it is, because patchelf 0.18 breaks Go programs. The
    search path is written as DT_RPATH, which unlike DT_RUNPATH also holds for the
    libraries' own dependencies (ld.so(8)). A static program or a script is left alone.

    Params: ``final_root`` is where ``root`` will be at run time.
    Raises: DeployError when the program isn't there or can't be changed.
    """
    if not program.is_file():
        raise DeployError(f"{program} is not in the unpacked packages")
    with open(program, "rb") as handle:
        if handle.read(4) != b"\x7fELF":
            return
    try:
        interpreter = run(["patchelf", "--print-interpreter", program], timeout=60).strip()
    except DeployError:
        return  # statically linked: needs no libraries
    if _satisfied(program, interpreter):
        return
    folders = {path.parent for path in (root / "usr/lib").rglob("lib*.so*") if path.is_file()}
    places = [final_root / folder.relative_to(root) for folder in sorted(folders)]
    run(
        ["patchelf", "--set-interpreter", final_root / interpreter.lstrip("/"),
         "--force-rpath", "--set-rpath", ":".join(map(str, places)), program],
        timeout=120,
    )  # fmt: skip


def _satisfied(program: Path, interpreter: str) -> bool:
    # The dynamic linker looks for libraries and symbol versions without running the program;
    # about a version it only complains.
    done = subprocess.run(
        [interpreter, "--list", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return done.returncode == 0 and b"not found" not in done.stdout
