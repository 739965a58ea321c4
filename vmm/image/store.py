"""Guest images on disk: a directory each, named for what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vmm.arch import host_architecture
from vmm.image.errors import ImageError

KernelKind = Literal["debian", "tuned"]
KINDS: tuple[KernelKind, ...] = get_args(KernelKind)
DEFAULT_CACHE = Path("/var/cache/katapy")

_RECORD = "image.json"


@dataclass(frozen=True)
class GuestImage:
    """A kernel and a root file system that belong together.

    Args:
        kind: which kernel it has.
        architecture: of its programs and kernel, as ``uname -m`` says it.
        kernel: ELF image with a PVH entry on x86-64, elsewhere what the firmware boots.
        initrd: initramfs, when the kernel needs one.
        rootfs: erofs or squashfs image of whole 2 MiB; the guest wants it, read-only, as its
            first virtio disk or persistent memory.
        kernel_args: what the image needs on the kernel's command line.
        key: hash of all that went in; the same key means the same bytes.
        kernel_release: as ``uname -r`` says it in the guest.
        agent_key: hash of the agent's sources in it.
        versions: Debian packages in it, name → version.
        built: when it was last asked for, in seconds since 1970.
    """

    kind: KernelKind
    architecture: str
    kernel: Path
    initrd: Path | None
    rootfs: Path
    kernel_args: str
    key: str
    kernel_release: str
    agent_key: str
    versions: Mapping[str, str]
    built: float


def list_images(cache_dir: Path = DEFAULT_CACHE) -> list[GuestImage]:
    """Return the images that are ready to use, the last built (or asked for again) first.

    A damaged or half-removed image is left out.
    """
    found = []
    for record in sorted((cache_dir / "images").glob(f"*/{_RECORD}")):
        try:
            found.append(_load(record))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda image: image.built, reverse=True)


def find_image(
    cache_dir: Path = DEFAULT_CACHE, kernel: KernelKind | None = None, architecture: str = ""
) -> GuestImage:
    """Return the last built image with this kernel; without one named, the last built of all.

    Args:
        cache_dir: where images are kept.
        kernel: the kernel it has; None for whichever.
        architecture: as ``uname -m`` says it; empty is the host's.

    Raises:
        ImageError: there is none; the text says how to build it.
    """
    images = list_images(cache_dir)
    # The last built one has the agent of the present installation, whatever its kernel.
    for image in images:
        if kernel in (None, image.kind) and image.architecture == (
            architecture or host_architecture()
        ):
            return image
    what = f"guest image with the {kernel} kernel" if kernel else "guest image"
    if architecture and architecture != host_architecture():
        what = f"{architecture} {what}"
    command = build_command(kernel, architecture)
    raise ImageError(f"no {what} in {cache_dir}; build one with: {command}")


def build_command(kernel: KernelKind | None = None, architecture: str = "") -> str:
    """Return the command that builds an image, as a user types it.

    Args:
        kernel: the kernel it is to have; None for the default one.
        architecture: as ``uname -m`` says it; empty is the host's.
    """
    command = "katapy image build"
    if kernel:
        command += f" --kernel {kernel}"
    if architecture and architecture != host_architecture():
        command += f" --arch {architecture}"
    return command


def image_directory(cache_dir: Path, kind: KernelKind, architecture: str, key: str) -> Path:
    """Return where an image of this key is kept."""
    return cache_dir / "images" / f"{kind}-{architecture}-{key[:20]}"


def write_record(directory: Path, image: GuestImage) -> None:
    """Write an image's description beside its files; paths become relative to it."""
    fields: dict[str, Any] = asdict(image)
    for name in ("kernel", "initrd", "rootfs"):
        fields[name] = fields[name] and fields[name].name
    draft = directory / f".{_RECORD}.new"
    draft.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    draft.rename(directory / _RECORD)


def read_record(directory: Path) -> GuestImage | None:
    """Return the image in this directory, None when there is no complete one."""
    try:
        return _load(directory / _RECORD)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(record: Path) -> GuestImage:
    fields = json.loads(record.read_text())
    for name in ("kernel", "initrd", "rootfs"):
        if fields[name] is not None:
            fields[name] = record.parent / fields[name]
            fields[name].stat()
    if fields["kind"] not in KINDS:
        raise ValueError(f"unknown kind {fields['kind']}")
    return GuestImage(**fields)
