"""The container image the benchmark runs: the host's static busybox, no registry needed.

An archive as ``docker save`` writes it, which every containerd imports.
Source: docker image specification v1.2, "Combined Image JSON + Filesystem Changeset".
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

from shim.errors import FailedPrecondition

NAME = "localhost/katapy/bench:latest"
_APPLETS = ("cat", "dd", "head", "nc", "sh", "sleep", "true")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(target: Path) -> None:
    """Write the image as a file that ``ctr images import`` takes.

    Raises:
        FailedPrecondition: there is no busybox.
    """
    found = shutil.which("busybox")
    if found is None:
        raise FailedPrecondition("no busybox to run in the containers: install busybox-static")
    layer = _layer(Path(found).read_bytes())
    machine = platform.machine()
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        }
    ).encode()
    name = f"{_sha256(config)}.json"
    manifest = [{"Config": name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as tar:
        for path, data in (
            ("layer.tar", layer),
            (name, config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(tar, path, data, 0o644)


def _layer(busybox: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "dev", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", busybox, 0o755)
        for applet in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname, entry.mode = tarfile.LNKTYPE, "bin/busybox", 0o755
            tar.addfile(entry)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
