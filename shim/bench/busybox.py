"""The archive that a guest of the benchmark boots into: busybox and one script."""

from __future__ import annotations

import shutil
from pathlib import Path

from shim.errors import FailedPrecondition
from vmm.image.cpio import CpioWriter


def busybox_archive(name: str, script: str) -> bytes:
    """Pack busybox as ``bin/busybox``, and a script that it runs.

    Args:
        name: of the script, which the kernel's ``rdinit`` says with a slash before.
        script: its text, for ``/bin/busybox sh``.

    Raises:
        FailedPrecondition: the host has no busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FailedPrecondition("no busybox to boot into: install busybox-static")
    archive = CpioWriter()
    for directory in ("bin", "dev"):
        archive.directory(directory)
    archive.node("dev/console", 5, 1)
    archive.file("bin/busybox", Path(busybox).read_bytes(), 0o755)
    archive.file(name, script.encode(), 0o755)
    return archive.finish()
