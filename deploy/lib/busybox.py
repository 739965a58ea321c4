"""A container image made here, of Debian's static busybox: no registry needed.

The image is an OCI layout in one tar file, as ``ctr images import`` takes it. The same
busybox gives the same bytes. Source: OCI image-spec v1.1 (image-layout.md, config.md,
manifest.md), Debian package busybox-static.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deploy.lib.command import run

IMAGE_NAME = "localhost/katapy/busybox:latest"
_BUSYBOX = Path("/bin/busybox")
_DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700,
    "sys": 0o755, "tmp": 0o1777, "usr": 0o755, "var": 0o755,
}  # fmt: skip
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/:/bin/false\n"
        "user:x:1000:1000:user:/home:/bin/sh\n"
    ),
    "etc/group": "root:x:0:\ndaemon:x:1:\nuser:x:1000:\nextra:x:2000:user\n",
    "etc/hostname": "busybox\n",
}


def rootfs_tar(busybox: bytes | None = None) -> bytes:
    """The image's file tree: busybox with its applets as hard links.

    Hard links rather than symbolic ones, so that a masked or replaced file doesn't take
    all applets along.

    Params: ``busybox`` is the program of another architecture, of the host's version.
    """
    applets = run([_BUSYBOX, "--list"], timeout=10).split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in _DIRECTORIES.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, text in _FILES.items():
            _add_file(tar, name, text.encode(), 0o644)
        _add_file(tar, "bin/busybox", busybox or _BUSYBOX.read_bytes(), 0o755)
        for applet in sorted(set(applets) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname, entry.mode = tarfile.LNKTYPE, "bin/busybox", 0o755
            tar.addfile(entry)
    return buffer.getvalue()


def write_image(
    path: Path,
    name: str = IMAGE_NAME,
    *,
    architecture: str = "",
    busybox: bytes | None = None,
    command: Sequence[str] = ("/bin/sh",),
    above: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the image as an OCI layout tar that containerd imports as ``name``.

    Params: ``architecture`` and ``busybox`` are another than the host's; ``command`` is what
    a container of it runs; ``above`` are further layers, each the files it has by their paths
    (``dir/.wh.name`` hides a name of the layers below).
    """
    architecture = architecture or run(["dpkg", "--print-architecture"], timeout=10).strip()
    layers = [rootfs_tar(busybox), *map(_layer_tar, above)]
    with tarfile.open(path, mode="w") as tar:
        for member, data in _layout(layers, architecture, name, command):
            _add_file(tar, member, data, 0o644)


def _layer_tar(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in sorted({str(Path(path).parent) for path in files} - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, text in files.items():
            _add_file(tar, path, text.encode(), 0o644)
    return buffer.getvalue()


def _layout(
    layers: Sequence[bytes], architecture: str, name: str, command: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": ["PATH=/bin:/usr/bin"],
                "Cmd": list(command),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [
                _descriptor("application/vnd.oci.image.layer.v1.tar", layer) for layer in layers
            ],
        }
    )
    reference = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    reference["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": "latest",
    }
    yield "oci-layout", _json({"imageLayoutVersion": "1.0.0"})
    yield "index.json", _json({"schemaVersion": 2, "manifests": [reference]})
    for blob in (*layers, config, manifest):
        yield "blobs/" + _digest(blob).replace(":", "/"), blob


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
