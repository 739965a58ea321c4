"""Builds a guest image: one call, the same bytes for the same inputs, kept by their hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vmm.image import debian, tuned
from vmm.image.apt import Apt, Package
from vmm.image.errors import ImageError
from vmm.image.rootfs import RootTree
from vmm.image.sources import agent_sources, builder_sources, data_file
from vmm.image.store import (
    DEFAULT_CACHE,
    KINDS,
    GuestImage,
    KernelKind,
    image_directory,
    read_record,
    write_record,
)

# The guest's Python is its release's own; the library comes in a package beside it.
_PYTHON_METAPACKAGE, _PYTHON_PACKAGE = "python3-minimal", r"python3\.\d+-minimal"
_PROGRAM_PACKAGES = ("crun", "busybox-static")


def _silent(_: str) -> None:
    pass


def build_image(
    kernel: KernelKind = "debian",
    cache_dir: Path = DEFAULT_CACHE,
    progress: Callable[[str], None] = _silent,
    *,
    apt: Apt | None = None,
    sources: Mapping[str, bytes] | None = None,
) -> GuestImage:
    """Return the guest image of the present inputs, building what isn't in the cache.

    Args:
        kernel: ``debian``, Debian's cloud kernel, ready in a minute; or ``tuned``, built from
            Debian's kernel source, which boots in half the time.
        cache_dir: images, packages and kernels are kept here.
        progress: told in a few words what is being done.
        apt: another package archive than the host's own.
        sources: other modules for the guest than our agent's, by path.

    Raises:
        ImageError: a tool or package is missing, or a step failed; the text names it.
    """
    if kernel not in KINDS:
        raise ImageError(f"no kernel {kernel!r}: there are {', '.join(KINDS)}")
    if os.uname().machine != "x86_64":
        raise ImageError(f"guest images are built on x86_64 only, not on {os.uname().machine}")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / "lock", progress):
        return _build(
            kernel,
            cache_dir,
            progress,
            apt or Apt(cache_dir / "apt"),
            agent_sources() if sources is None else sources,
        )


def _build(
    kind: KernelKind,
    cache_dir: Path,
    progress: Callable[[str], None],
    apt: Apt,
    sources: Mapping[str, bytes],
) -> GuestImage:
    progress("resolving packages")
    python = apt.resolve(_PYTHON_METAPACKAGE, _PYTHON_PACKAGE)
    library = f"lib{python.name.removesuffix('-minimal')}-stdlib"
    packages = apt.closure([python.name, library, *_PROGRAM_PACKAGES])
    kernel = debian.kernel_package(apt) if kind == "debian" else tuned.source_package(apt)
    key = _key(kind, [*packages, kernel], sources)

    directory = image_directory(cache_dir, kind, key)
    if image := read_record(directory):
        progress(f"image {kind}-{key[:12]} is there already")
        # What was asked for last is what find_image gives.
        image = replace(image, built=time.time())
        write_record(directory, image)
        return image
    vmlinux, release = (
        tuned.build_kernel(apt, kernel, cache_dir, progress) if kind == "tuned" else (None, "")
    )

    directory.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=directory.parent, prefix="build-") as work_name:
        work = Path(work_name)
        progress(f"fetching {len(packages)} packages")
        debs = apt.fetch(packages)
        progress("putting the root file system together")
        (work / "root").mkdir()
        tree = RootTree(work / "root")
        for deb in debs:
            tree.add_package(deb)
        tree.add("etc/os-release", f"ID=katapy\nPRETTY_NAME=katapy guest {key[:12]}\n".encode())
        tree.add_agent(sources, data_file("init"))

        finished = work / "finished"
        finished.mkdir()
        initrd = None
        if vmlinux is not None:
            shutil.copyfile(vmlinux, finished / "vmlinux")
        else:
            progress(f"fetching {kernel}")
            (deb,) = apt.fetch([kernel])
            ready = debian.prepare_kernel(deb, tree.busybox)
            (finished / "vmlinux").write_bytes(ready.vmlinux)
            initrd = finished / "initrd"
            initrd.write_bytes(ready.initrd)
            release = ready.release
            for path, data in ready.root_files.items():
                tree.add(path, data)

        progress("packing the root file system")
        tree.complete()
        tree.pack(finished / "rootfs.erofs")
        image = GuestImage(
            kind=kind,
            kernel=finished / "vmlinux",
            initrd=initrd,
            rootfs=finished / "rootfs.erofs",
            kernel_args=debian.KERNEL_ARGS if kind == "debian" else tuned.KERNEL_ARGS,
            key=key,
            kernel_release=release,
            agent_key=agent_key(sources),
            versions={package.name: package.version for package in [*packages, kernel]},
            built=time.time(),
        )
        write_record(finished, image)
        shutil.rmtree(directory, ignore_errors=True)
        finished.rename(directory)
    made = read_record(directory)
    if made is None:
        raise ImageError(f"{directory}: the image just built isn't readable")
    return made


def agent_key(sources: Mapping[str, bytes] | None = None) -> str:
    """Return the hash of the agent's sources, to tell whether an image holds the present agent."""
    return _digest(agent_sources() if sources is None else sources)


def _key(kind: str, packages: list[Package], sources: Mapping[str, bytes]) -> str:
    parts = {
        "kind": kind.encode(),
        "packages": "\n".join(map(str, packages)).encode(),
        "mkfs": _mkfs(),
        "agent": _digest(sources).encode(),
        "builder": _digest(builder_sources()).encode(),
    }
    return _digest(parts)


def _mkfs() -> bytes:
    # Old releases of the tool can't say their version.
    path = shutil.which("mkfs.erofs")
    if path is None:
        raise ImageError("mkfs.erofs is needed to build a guest image; it is in erofs-utils")
    return Path(path).read_bytes()


def _digest(parts: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(parts.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the cache for ourselves; the kernel lets go of it if we die."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build in this cache")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
